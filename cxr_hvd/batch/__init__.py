"""Batch scripts for schedulers, from a table of machines."""
