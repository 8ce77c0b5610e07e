"""Data sets, image operations and loading."""
