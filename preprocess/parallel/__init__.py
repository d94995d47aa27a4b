"""Preprocessing on many ranks: work shared out by block, and merged into one study file."""
