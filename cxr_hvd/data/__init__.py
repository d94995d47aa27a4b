"""Batches from study files: reading, augmentation, prefetching and staging."""
