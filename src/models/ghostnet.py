"""GhostNet: https://arxiv.org/abs/1911.11907, section 3 and table 1."""

import math
from typing import Optional

import mindspore as ms
from mindspore import nn, ops

from src.models.declaration import NativeKernels, Operation, Shape, element_wise
from src.models.layers import ChannelConcat, ConvNormAct, GlobalPool, SqueezeExcite, make_divisible


class GhostModule(nn.Cell):
    """Convolution that computes some output channels from the others by a cheap depthwise convolution (section 3.1).

    Replaces a convolution with BatchNorm: (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride). `ratio`
    is the paper's s: the convolution computes one output channel in `ratio`. A depthwise convolution of size
    `ghost_kernel_size` computes the other output channels, the ghosts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        ratio: int = 2,
        ghost_kernel_size: int = 3,
        activation: Optional[type[nn.Cell]] = nn.ReLU,
    ) -> None:
        super().__init__()
        primary = math.ceil(out_channels / ratio)
        ghosts = primary * (ratio - 1)
        self.primary = ConvNormAct(in_channels, primary, kernel_size, stride, activation=activation)
        self.ghosts = ConvNormAct(primary, ghosts, ghost_kernel_size, groups=primary, activation=activation)
        self.concat = ChannelConcat(primary)
        self.out_channels = out_channels
        self.surplus = primary + ghosts > out_channels

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        primary = self.primary(x)
        both = self.concat(primary, self.ghosts(primary))
        return both[:, : self.out_channels] if self.surplus else both

    def fuse(self, kernels: NativeKernels) -> Optional[nn.Cell]:
        """Return the native Cell that replaces the module, or None."""
        return kernels.ghost(self)


class GhostBottleneck(nn.Cell):
    """Ghost expansion, depthwise convolution (stride 2 only), optional SE, ghost projection, shortcut (figure 3)."""

    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, kernel_size: int, stride: int, squeeze: bool
    ) -> None:
        super().__init__()
        self.expand = GhostModule(in_channels, hidden)
        self.depthwise = None
        if stride == 2:
            self.depthwise = ConvNormAct(hidden, hidden, kernel_size, stride, groups=hidden, activation=None)
        self.squeeze = SqueezeExcite(hidden, make_divisible(hidden / 4, 4)) if squeeze else None
        self.project = GhostModule(hidden, out_channels, activation=None)
        self.shortcut = None
        if stride == 2 or in_channels != out_channels:
            self.shortcut = nn.SequentialCell(
                ConvNormAct(in_channels, in_channels, kernel_size, stride, groups=in_channels, activation=None),
                ConvNormAct(in_channels, out_channels, 1, activation=None),
            )

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        y = self.expand(x)
        if self.depthwise is not None:
            y = self.depthwise(y)
        if self.squeeze is not None:
            y = self.squeeze(y)
        y = self.project(y)
        return y + (x if self.shortcut is None else self.shortcut(x))

    def operations(self, x: Shape, y: Shape) -> list[Operation]:
        return [element_wise("Add", y, operands=2)]


class GhostNet(nn.Cell):
    """Backbone: normalised pixels (N, in_channels, H, W) to features (N, out_features)."""

    variants = (0.5, 1.0, 1.3)  # width multipliers
    out_features = 1280  # at every width
    bottlenecks = (  # kernel size, hidden channels, output channels at 1.0x, SE, stride
        (3, 16, 16, False, 1),
        (3, 48, 24, False, 2),
        (3, 72, 24, False, 1),
        (5, 72, 40, True, 2),
        (5, 120, 40, True, 1),
        (3, 240, 80, False, 2),
        (3, 200, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 480, 112, True, 1),
        (3, 672, 112, True, 1),
        (5, 672, 160, True, 2),
        (5, 960, 160, False, 1),
        (5, 960, 160, True, 1),
        (5, 960, 160, False, 1),
        (5, 960, 160, True, 1),
    )

    def __init__(self, width: float = 1.0, in_channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__()
        channels = make_divisible(16 * width, 4)
        self.stem = ConvNormAct(in_channels, channels, 3, stem_stride)
        blocks = []
        for kernel_size, hidden, base_channels, squeeze, stride in self.bottlenecks:
            hidden = make_divisible(hidden * width, 4)
            out_channels = make_divisible(base_channels * width, 4)
            blocks.append(GhostBottleneck(channels, hidden, out_channels, kernel_size, stride, squeeze))
            channels = out_channels
        self.blocks = nn.SequentialCell(blocks)
        self.last = ConvNormAct(channels, make_divisible(960 * width, 4), 1)
        self.global_pool = GlobalPool()
        # This layer acts on the pooled 1x1 feature map and has no BatchNorm, as in table 1.
        self.widen = nn.Conv2d(make_divisible(960 * width, 4), self.out_features, 1, has_bias=True)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        pooled = self.global_pool(self.last(self.blocks(self.stem(x))))
        return ops.flatten(ops.relu(self.widen(pooled)))

    def operations(self, x: Shape, y: Shape) -> list[Operation]:
        return [element_wise("ReLU", y)]
