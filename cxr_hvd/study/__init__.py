"""The study file, on which the preprocessing and the training stage meet, and its labels."""
