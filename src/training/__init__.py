"""Training: the network made ready, the step, the loop and the techniques."""
