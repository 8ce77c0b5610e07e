"""Blocks that several networks share. All maps are float32 of shape (N, C, H, W)."""

import mindspore as ms
from mindspore import nn, ops
from mindspore.common.initializer import HeNormal, Normal, initializer

from src.models.declaration import Operation, element_wise, elements


def make_divisible(channels, divisor=8):
    """Round a channel count to a multiple of `divisor`, never below 0.9 of it (MobileNetV2's reference code)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvNormAct(nn.Cell):
    """Convolution without bias, BatchNorm, activation; padded so that stride 1 keeps the map's size.

    `activation` is a Cell class such as `nn.ReLU`, or None for a linear output; `norm` makes the BatchNorm of a number
    of channels.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        groups=1,
        activation=nn.ReLU,
        norm=nn.BatchNorm2d,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            pad_mode="pad",
            padding=kernel_size // 2,
            group=groups,
            has_bias=False,
        )
        self.norm = norm(out_channels)
        self.act = activation() if activation else None

    def construct(self, x):
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class SqueezeExcite(nn.Cell):
    """Scale each channel by a gate computed from all channels' means (Squeeze-and-Excitation, section 3).

    `reduced` is the width of the hidden layer, `gate` the Cell class of the gate's activation.
    """

    def __init__(self, channels, reduced, gate=nn.HSigmoid):
        super().__init__()
        self.pool = GlobalPool()
        self.reduce = nn.Conv2d(channels, reduced, 1, has_bias=True)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(reduced, channels, 1, has_bias=True)
        self.gate = gate()

    def construct(self, x):
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))

    def operations(self, x, y):
        return [Operation("Mul", "element-wise", x, y, elements(x, x[:1], y))]


class InvertedResidual(nn.Cell):
    """1x1 expansion, depthwise KxK, SE where asked, linear 1x1; added to its input where the shapes agree.

    MobileNetV2, figure 3b; with `squeeze`, the width of SE's hidden layer, MobileNetV3, figure 4. There is no expansion
    where `hidden` is `in_channels`.
    """

    def __init__(
        self,
        in_channels,
        hidden,
        out_channels,
        kernel_size,
        stride,
        activation,
        squeeze=None,
        norm=nn.BatchNorm2d,
    ):
        super().__init__()
        layers = []
        if hidden != in_channels:
            layers.append(ConvNormAct(in_channels, hidden, 1, activation=activation, norm=norm))
        layers.append(ConvNormAct(hidden, hidden, kernel_size, stride, hidden, activation, norm))
        if squeeze:
            layers.append(SqueezeExcite(hidden, squeeze))
        layers.append(ConvNormAct(hidden, out_channels, 1, activation=None, norm=norm))
        self.layers = nn.SequentialCell(layers)
        self.residual = stride == 1 and in_channels == out_channels

    def construct(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)

    def operations(self, x, y):
        return [element_wise("Add", y, operands=2)] if self.residual else []


class AddReLU(nn.Cell):
    """ReLU of the sum of two feature maps of one shape."""

    def construct(self, a, b):
        return ops.relu(a + b)

    def operations(self, x, y):
        return [element_wise("Add", y, operands=2), element_wise("ReLU", y)]


class ChannelShuffle(nn.Cell):
    """Take the channels of (N, C, H, W) from `groups` equal runs in turn, one of each (ShuffleNetV1, figure 1c)."""

    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def construct(self, x):
        batch, channels, height, width = x.shape
        x = ops.reshape(x, (batch, self.groups, channels // self.groups, height, width))
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3, 4)), (batch, channels, height, width))

    def operations(self, x, y):
        return [element_wise("Shuffle", y)]


class ChannelSplit(nn.Cell):
    """Two halves of `channels` channels: the first and the second, or the even and the odd ones."""

    def __init__(self, channels, interleaved):
        super().__init__()
        self.half = channels // 2
        self.interleaved = interleaved
        self.shuffle = ChannelShuffle(self.half) if interleaved else None

    def construct(self, x):
        return ops.split(x if self.shuffle is None else self.shuffle(x), self.half, 1)

    def operations(self, x, y):
        return [element_wise("Split", x)]


class ChannelConcat(nn.Cell):
    """The channels of two maps, one map after the other or, of equally many, in turn; the first map has `first`."""

    def __init__(self, first, interleaved=False):
        super().__init__()
        self.first = first
        self.interleaved = interleaved
        self.shuffle = ChannelShuffle(2) if interleaved else None

    def construct(self, a, b):
        both = ops.concat((a, b), 1)
        return both if self.shuffle is None else self.shuffle(both)

    def operations(self, x, y):
        return [element_wise("Concat", y)]


class GlobalPool(nn.Cell):
    """Average a map over its area: (N, C, H, W) to (N, C, 1, 1)."""

    def construct(self, x):
        return ops.mean(x, (2, 3), True)

    def operations(self, x, y):
        return [Operation("Mean", "pooling", x, y, elements(x, y))]


def set_norm(network, epsilon=None, momentum=None):
    """Give every BatchNorm of `network` another epsilon or momentum; its parameters start anew under their old names.

    `momentum` is the share of the old moving statistics, MindSpore's convention; PyTorch's is 1 minus this.
    """
    for _, cell in network.cells_and_names():
        if isinstance(cell, ConvNormAct):
            old = cell.norm
            names = [parameter.name for parameter in old.get_parameters()]
            cell.norm = nn.BatchNorm2d(
                old.num_features,
                eps=old.eps if epsilon is None else epsilon,
                momentum=1 - old.momentum if momentum is None else momentum,  # the Cell keeps the share of the new
            )
            for parameter, name in zip(cell.norm.get_parameters(), names):
                parameter.name = name


def initialize_weights(network):
    """He-normal convolutions (fan-out), N(0, 0.01) classifier, zero biases; BatchNorm keeps weight 1 and bias 0."""
    for _, layer in network.cells_and_names():
        if isinstance(layer, nn.Conv2d):
            layer.weight.set_data(initializer(HeNormal(mode="fan_out"), layer.weight.shape, ms.float32))
        elif isinstance(layer, nn.Dense):
            layer.weight.set_data(initializer(Normal(0.01), layer.weight.shape, ms.float32))
        else:
            continue
        if layer.bias is not None:
            layer.bias.set_data(initializer("zeros", layer.bias.shape, ms.float32))
