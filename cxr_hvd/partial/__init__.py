"""Partial averaging: which tensors all sites average, how they travel, and what that costs."""
