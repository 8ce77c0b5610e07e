"""The run folder: what a training records, and resuming from it."""
