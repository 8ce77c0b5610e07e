"""The learning-rate schedule and the optimizer."""

import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops


def learning_rates(config, steps_per_epoch, ranks=1):
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


class MomentumSGD(nn.Cell):
    """Momentum SGD, Nesterov's where asked: `optimizer(gradients, rate)` updates every parameter once.

    `groups` is a list of (parameters, weight decay, factor of the learning rate); the gradients come in the order of
    `parameters`, `rate` is a float32 scalar.
    """

    def __init__(self, groups, momentum, nesterov):
        super().__init__()
        # One graph node a parameter; nn.SGD takes twice as long to compile as all the rest of a step, and nn.Momentum's
        # Nesterov option changes nothing on the CPU of MindSpore 2.7.
        self.rules = [ops.SGD(0.0, decay, nesterov) for _, decay, _ in groups]
        self.factors = [factor for _, _, factor in groups]
        self.ends = np.cumsum([0] + [len(parameters) for parameters, _, _ in groups]).tolist()
        self.parameters = ms.ParameterTuple([parameter for parameters, _, _ in groups for parameter in parameters])
        self.velocities = self.parameters.clone("velocity", "zeros")
        self.fresh = self.parameters.clone("fresh", "zeros")  # the kernel's flags of a first step, which zeros need not
        self.state = [*self.velocities, *self.fresh]
        for p in self.state:
            p.name = "optimizer." + p.name
        self.momentum = ms.Tensor(momentum, ms.float32)
        self.map = ops.HyperMap()

    def construct(self, gradients, rate):
        done = ()
        for i in range(len(self.rules)):
            own = slice(self.ends[i], self.ends[i + 1])
            update = ops.partial(update_one, self.rules[i], rate * self.factors[i], self.momentum)
            done += self.map(update, self.parameters[own], gradients[own], self.velocities[own], self.fresh[own])
        return done


update_one = ops.MultitypeFuncGraph("update_one")


@update_one.register("Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def update_with_sgd(rule, rate, momentum, parameter, gradient, velocity, fresh):
    return rule(parameter, gradient, rate, velocity, momentum, fresh)


def create_optimizer(config, classifier):
    """Return momentum SGD over all trainable parameters; weight decay acts on convolution and dense weights only."""
    settings = config.optimizer
    groups = {}
    for parameter in classifier.trainable_params():
        groups.setdefault((parameter.name.startswith("head."), parameter.ndim > 1), []).append(parameter)
    return MomentumSGD(
        [
            (
                parameters,
                settings.weight_decay if is_weight else 0.0,
                settings.head_lr / settings.lr if in_head and settings.head_lr else 1.0,
            )
            for (in_head, is_weight), parameters in groups.items()
        ],
        settings.momentum,
        settings.nesterov,
    )
