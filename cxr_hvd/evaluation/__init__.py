"""What a trained model is worth: scores, metrics, tables."""
