"""The learning-rate schedule and the optimizer."""

import math

import mindspore as ms
import numpy as np
from mindspore import nn


def learning_rates(config, steps_per_epoch):
    """Return the learning rate of every step of the run, float32 (epochs * steps_per_epoch)."""
    total = config.train.epochs * steps_per_epoch
    warmup = min(round(config.schedule.warmup_epochs * steps_per_epoch), total)
    rising = (np.arange(warmup) + 1) / max(warmup, 1)
    progress = np.arange(total - warmup) / max(total - warmup, 1)
    falling = {
        "cosine": 0.5 * (1 + np.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": np.ones_like(progress),
    }[config.schedule.name]
    return np.float32(config.optimizer.lr * np.concatenate([rising, falling]))


def create_optimizer(config, classifier, rates):
    """Return momentum SGD over all trainable parameters; weight decay acts on convolution and dense weights only.

    `rates` is the learning rate of every step, float32 (steps).
    """
    parameters = classifier.trainable_params()
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim == 1]
    settings = config.optimizer
    # Not nn.Momentum: on the CPU of MindSpore 2.7 its Nesterov option changes nothing.
    return nn.SGD(
        [{"params": weights, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        learning_rate=ms.Tensor(rates),
        momentum=settings.momentum,
        nesterov=settings.nesterov,
    )
