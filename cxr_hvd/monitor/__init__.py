"""What `cxr-hvd inspect-run` shows of a run."""
