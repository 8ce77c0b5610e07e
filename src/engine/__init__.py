"""Training step, evaluation, checkpoints and the run folder."""
