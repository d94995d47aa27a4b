"""Everything that ranks say to each other. Knows tensors and names; knows nothing of images."""
