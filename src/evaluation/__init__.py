"""Evaluation: metrics of a split and predictions for image files."""
