"""The model card of a network: what it is, what it was trained on, how good it is, and what nobody knows."""
