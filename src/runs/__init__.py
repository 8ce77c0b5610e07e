"""The run folder: the record of a training run, and how a run is resumed from it."""
