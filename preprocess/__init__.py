"""Turn hospital files into study files: one site at a time, on any number of MPI ranks."""
