"""Train one chest X-ray model at several institutions by partial weight averaging over MPI."""

__version__ = "0.1.0"
