"""Checkpoints: written while training goes on, and read back bit for bit."""
