"""Blocks that several networks share. All feature maps are float32 of shape (N, C, H, W)."""

from typing import Callable, Optional

import mindspore as ms
from mindspore import nn, ops
from mindspore.common.initializer import HeNormal, Normal, initializer

from src.models.declaration import Operation, Shape, element_wise, elements


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round `channels` to a multiple of `divisor`, but never below 0.9 `channels` (MobileNetV2's reference code)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvNormAct(nn.Cell):
    """Convolution without bias, BatchNorm, activation. The padding keeps the feature map's size at stride 1.

    `activation` is a Cell class such as `nn.ReLU`, or None for a linear output. `norm` is called with the number of
    channels and returns the BatchNorm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        activation: Optional[type[nn.Cell]] = nn.ReLU,
        norm: Callable[[int], nn.Cell] = nn.BatchNorm2d,
    ) -> None:
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

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class SqueezeExcite(nn.Cell):
    """Squeeze-and-Excitation: scale each channel by a gate that depends on the means of all channels (section 3).

    `reduced` is the number of hidden channels, `gate` the Cell class of the gate's activation.
    """

    def __init__(self, channels: int, reduced: int, gate: type[nn.Cell] = nn.HSigmoid) -> None:
        super().__init__()
        self.pool = GlobalPool()
        self.reduce = nn.Conv2d(channels, reduced, 1, has_bias=True)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(reduced, channels, 1, has_bias=True)
        self.gate = gate()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))

    def operations(self, x: Shape, y: Shape) -> list[Operation]:
        return [Operation("Mul", "element-wise", x, y, elements(x, x[:1], y))]


class InvertedResidual(nn.Cell):
    """1x1 expansion, depthwise KxK, optional SE, linear 1x1; added to the input if both have the same shape.

    MobileNetV2, figure 3b. `squeeze` is the number of SE's hidden channels (MobileNetV3, figure 4) or None for no SE.
    If `hidden` equals `in_channels`, the block has no expansion.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        activation: type[nn.Cell],
        squeeze: Optional[int] = None,
        norm: Callable[[int], nn.Cell] = nn.BatchNorm2d,
    ) -> None:
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

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)

    def operations(self, x: Shape, y: Shape) -> list[Operation]:
        return [element_wise("Add", y, operands=2)] if self.residual else []


class AddReLU(nn.Cell):
    """Add two feature maps of the same shape and apply ReLU."""

    def construct(self, a: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
        return ops.relu(a + b)

    def operations(self, x: Shape, y: Shape) -> list[Operation]:
        return [element_wise("Add", y, operands=2), element_wise("ReLU", y)]


class ChannelShuffle(nn.Cell):
    """Channel shuffle (ShuffleNetV1, figure 1c): (N, C, H, W) to the same shape.

    The output starts with the first channel of each of the `groups` groups, then has the second of each, and so on.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        batch, channels, height, width = x.shape
        x = ops.reshape(x, (batch, self.groups, channels // self.groups, height, width))
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3, 4)), (batch, channels, height, width))

    def operations(self, x: Shape, y: Shape) -> list[Operation]:
        return [element_wise("Shuffle", y)]


class ChannelSplit(nn.Cell):
    """Split `channels` channels into two halves: the first and the second half, or even and odd channels.

    `interleaved` selects even and odd channels.
    """

    def __init__(self, channels: int, interleaved: bool) -> None:
        super().__init__()
        self.half = channels // 2
        self.interleaved = interleaved
        self.shuffle = ChannelShuffle(self.half) if interleaved else None

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        return ops.split(x if self.shuffle is None else self.shuffle(x), self.half, 1)

    def operations(self, x: Shape, y: Shape) -> list[Operation]:
        return [element_wise("Split", x)]


class ChannelConcat(nn.Cell):
    """Concatenate the channels of two feature maps. The first feature map has `first_channels` channels.

    With `interleaved`, the channels alternate, and both feature maps have the same number of channels.
    """

    def __init__(self, first_channels: int, interleaved: bool = False) -> None:
        super().__init__()
        self.first_channels = first_channels
        self.interleaved = interleaved
        self.shuffle = ChannelShuffle(2) if interleaved else None

    def construct(self, a: ms.Tensor, b: ms.Tensor) -> ms.Tensor:
        both = ops.concat((a, b), 1)
        return both if self.shuffle is None else self.shuffle(both)

    def operations(self, x: Shape, y: Shape) -> list[Operation]:
        return [element_wise("Concat", y)]


class GlobalPool(nn.Cell):
    """Global average pooling: (N, C, H, W) to (N, C, 1, 1)."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return ops.mean(x, (2, 3), True)

    def operations(self, x: Shape, y: Shape) -> list[Operation]:
        return [Operation("Mean", "pooling", x, y, elements(x, y))]


def set_norm(network: nn.Cell, epsilon: Optional[float] = None, momentum: Optional[float] = None) -> None:
    """Give every BatchNorm of `network` another epsilon or momentum.

    The BatchNorm's parameters are initialised again; their names stay. `momentum` is the share of the old moving
    statistics (MindSpore's convention); PyTorch's momentum is 1 minus this.
    """
    for _, cell in network.cells_and_names():
        if isinstance(cell, ConvNormAct):
            old = cell.norm
            names = [parameter.name for parameter in old.get_parameters()]
            cell.norm = nn.BatchNorm2d(
                old.num_features,
                eps=old.eps if epsilon is None else epsilon,
                # The Cell's attribute is the share of the new statistics, 1 minus the argument.
                momentum=1 - old.momentum if momentum is None else momentum,
            )
            for parameter, name in zip(cell.norm.get_parameters(), names):
                parameter.name = name


def pad_same(layer: ConvNormAct) -> None:
    """Let the convolution of a layer pad as TensorFlow's "same"; its weight stays.

    A kernel of size K at stride 2 needs K - 1 pixels of padding if a side of the feature map is odd, and K - 2 pixels
    if it is even. Half of them, rounded down, are above and on the left; the other pixels are below and on the right.
    """
    old = layer.conv
    name = old.weight.name
    layer.conv = nn.Conv2d(
        old.in_channels, old.out_channels, old.kernel_size, old.stride, "same", group=old.group, has_bias=False
    )
    layer.conv.weight = old.weight
    layer.conv.weight.name = name  # a Cell puts its own name in front of the names of new parameters


def initialize_weights(network: nn.Cell) -> None:
    """Initialise convolutions (He-normal, fan-out), dense layers (normal, standard deviation 0.01) and biases (0).

    BatchNorm keeps weight 1 and bias 0.
    """
    for _, layer in network.cells_and_names():
        if isinstance(layer, nn.Conv2d):
            layer.weight.set_data(initializer(HeNormal(mode="fan_out"), layer.weight.shape, ms.float32))
        elif isinstance(layer, nn.Dense):
            layer.weight.set_data(initializer(Normal(0.01), layer.weight.shape, ms.float32))
        else:
            continue
        if layer.bias is not None:
            layer.bias.set_data(initializer("zeros", layer.bias.shape, ms.float32))
