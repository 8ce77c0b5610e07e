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
    settings = config.optimizer
    head_rates = rates * (settings.head_lr / settings.lr) if settings.head_lr else rates
    groups = {}
    for parameter in classifier.trainable_params():
        groups.setdefault((parameter.name.startswith("head."), parameter.ndim > 1), []).append(parameter)
    # Not nn.Momentum: on the CPU of MindSpore 2.7 its Nesterov option changes nothing.
    return nn.SGD(
        [
            {
                "params": parameters,
                "lr": ms.Tensor(head_rates if in_head else rates),
                "weight_decay": settings.weight_decay if is_weight else 0.0,
            }
            for (in_head, is_weight), parameters in groups.items()
        ],
        learning_rate=ms.Tensor(rates),
        momentum=settings.momentum,
        nesterov=settings.nesterov,
    )
