"""Cells over the native operators, with the parameters of the stock Cells that they stand in for."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.kernels import operators


class NormSettings:
    """What an operator needs to know of one BatchNorm with its activation, in one of the two modes."""

    def __init__(self, norm, activation, batch_statistics):
        self.epsilon = norm.eps
        self.momentum = 1 - norm.momentum  # the Cell keeps the share of the new statistics
        self.activation = activation
        self.batch_statistics = batch_statistics


def activation_name(act):
    """Return the class name of an activation Cell, or None for none."""
    return type(act).__name__ if act is not None else None


class Norm(nn.Cell):
    """BatchNorm and activation in one."""

    def __init__(self, library, norm, act):
        super().__init__()
        self.gamma, self.beta = norm.gamma, norm.beta
        self.moving_mean, self.moving_variance = norm.moving_mean, norm.moving_variance
        name = activation_name(act)
        self.train_operator = operators.norm_activation(library, NormSettings(norm, name, True))
        self.infer_operator = operators.norm_activation(library, NormSettings(norm, name, False))

    def construct(self, x):
        operator = self.train_operator if self.training else self.infer_operator
        return operator(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)


class Pointwise(nn.Cell):
    """1x1 convolution, grouped or not."""

    def __init__(self, library, conv):
        super().__init__()
        self.weight = conv.weight
        self.operator = operators.pointwise(library)

    def construct(self, x):
        return self.operator(x, self.weight)


class Dense(nn.Cell):
    """KxK convolution of few channels."""

    def __init__(self, library, conv):
        super().__init__()
        self.weight = conv.weight
        self.operator = operators.dense(library, conv.stride[0], conv.kernel_size[0] // 2)

    def construct(self, x):
        return self.operator(x, self.weight)


class Depthwise(nn.Cell):
    """Depthwise convolution, the BatchNorm and activation before it, if any, and those after it.

    `before` is (norm, act) or None, `after` is (norm, act); for `keep` and `runs` see `operators.depthwise`.
    """

    def __init__(self, library, before, conv, after, keep=False, runs=1):
        super().__init__()
        self.weight = conv.weight
        absent = ms.Tensor(np.zeros(1, np.float32))
        for name, pair in (("before", before), ("after", after)):
            for key in ("gamma", "beta", "moving_mean", "moving_variance"):
                setattr(self, f"{name}_{key}", getattr(pair[0], key) if pair else absent)

        def operator(batch_statistics):
            settings = [
                NormSettings(pair[0], activation_name(pair[1]), batch_statistics) if pair else None
                for pair in (before, after)
            ]
            return operators.depthwise(library, conv.stride[0], *settings, keep, runs)

        self.train_operator, self.infer_operator = operator(True), operator(False)

    def construct(self, x):
        operator = self.train_operator if self.training else self.infer_operator
        return operator(
            x,
            self.before_gamma,
            self.before_beta,
            self.before_moving_mean,
            self.before_moving_variance,
            self.weight,
            self.after_gamma,
            self.after_beta,
            self.after_moving_mean,
            self.after_moving_variance,
        )


class AveragePool(nn.Cell):
    """3x3 average pooling at stride 2, padded by 1, the zeros counted: a depthwise convolution of ninths."""

    def __init__(self, library, channels):
        super().__init__()
        self.absent = ms.Tensor(np.zeros(1, np.float32))
        self.weight = ms.Tensor(np.full((channels, 1, 3, 3), 1 / 9, np.float32))
        self.operator = operators.depthwise(library, 2, None, None)

    def construct(self, x):
        none = self.absent
        return self.operator(x, none, none, none, none, self.weight, none, none, none, none)


class Function(nn.Cell):
    """An operator without weights."""

    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def construct(self, *maps):
        return self.operator(*maps)


class Ghost(nn.Cell):
    """A `GhostModule` that makes one ghost of each channel: its convolution, and all that follows in one operator."""

    def __init__(self, library, module):
        super().__init__()
        primary, ghosts = module.primary, module.ghosts
        self.conv = primary.conv
        self.ghosts = Depthwise(library, (primary.norm, primary.act), ghosts.conv, (ghosts.norm, ghosts.act), keep=True)
        self.out_channels = module.out_channels
        self.surplus = module.surplus

    def construct(self, x):
        both = self.ghosts(self.conv(x))
        return both[:, : self.out_channels] if self.surplus else both


class SqueezeExcite(nn.Cell):
    """Squeeze-and-excitation with its 1x1 convolutions as matrix products."""

    def __init__(self, library, module):
        super().__init__()
        self.reduce, self.act, self.expand, self.gate = module.reduce, module.act, module.expand, module.gate
        self.mean, self.scale = operators.mean(library), operators.scale(library)

    def construct(self, x):
        batch, channels = x.shape[:2]
        hidden = self.act(product(ops.reshape(self.mean(x), (batch, channels)), self.reduce))
        return self.scale(x, self.gate(ops.reshape(product(hidden, self.expand), (batch, channels, 1, 1))))


def product(x, conv):
    """Apply a 1x1 convolution with bias to (N, in_channels)."""
    return ops.matmul(x, ops.reshape(conv.weight, conv.weight.shape[:2]).T) + conv.bias
