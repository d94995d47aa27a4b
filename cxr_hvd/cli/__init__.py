"""The command `cxr-hvd`."""
