"""Metrics, intervals and tests. Numbers in, numbers out; knows no run."""
