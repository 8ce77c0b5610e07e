"""Trained weights: our checkpoints, and weight files of other libraries."""
