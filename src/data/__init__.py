"""Datasets, image operations and loading."""
