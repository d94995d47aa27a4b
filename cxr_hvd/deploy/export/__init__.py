"""One folder in which a trained network stands alone: weights, programs, MONAI bundle, model card."""
