"""Native CPU kernels for training and evaluation, in place of MindSpore's operators."""
