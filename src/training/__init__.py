"""Training: the prepared network, the training step, the loop, the optimizers and the training techniques."""
