"""Trained weights: the checkpoints of PocketSpore, and weight files of other libraries."""
