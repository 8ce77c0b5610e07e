"""ShuffleNetV1: https://arxiv.org/abs/1707.01083, section 3 and table 1; details follow the authors' code."""

import math

import mindspore as ms
from mindspore import nn, ops

from src.models.declaration import NativeKernels, Operation, Option, Shape, element_wise
from src.models.layers import AddReLU, ChannelConcat, ChannelShuffle, ConvNormAct, GlobalPool


class ShuffleUnit(nn.Cell):
    """Grouped 1x1, shuffle, depthwise 3x3 and grouped 1x1 convolution, with a shortcut (figure 2).

    At stride 1 the shortcut is the input, which is added. At stride 2 it is the average-pooled input, and the two are
    concatenated.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        # A quarter of the output channels, as in the paper. It is rounded up to a multiple of the groups, which 0.5x
        # and 1.5x need with 2 or 4 groups.
        bottleneck = math.ceil(out_channels / 4 / groups) * groups
        branch_out = out_channels - in_channels if stride == 2 else out_channels
        self.compress = ConvNormAct(in_channels, bottleneck, 1, groups=first_groups)
        # The authors' code shuffles runs of `groups` channels. The paper's text describes the inverse shuffle.
        self.shuffle = ChannelShuffle(bottleneck // groups) if groups > 1 else None
        self.depthwise = ConvNormAct(bottleneck, bottleneck, 3, stride, groups=bottleneck, activation=None)
        self.expand = ConvNormAct(bottleneck, branch_out, 1, groups=groups, activation=None)
        self.pool = nn.AvgPool2d(3, 2, pad_mode="pad", padding=1) if stride == 2 else None
        # `construct` uses one of these two cells: concat at stride 2, add at stride 1.
        self.concat = ChannelConcat(in_channels)
        self.add = AddReLU()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        branch = self.compress(x)
        if self.shuffle is not None:
            branch = self.shuffle(branch)
        branch = self.expand(self.depthwise(branch))
        if self.pool is None:
            return self.add(x, branch)
        return ops.relu(self.concat(self.pool(x), branch))

    def operations(self, x: Shape, y: Shape) -> list[Operation]:
        return [] if self.pool is None else [element_wise("ReLU", y)]

    def fuse(self, kernels: NativeKernels) -> None:
        """Let the depthwise kernel also compute the BatchNorm, activation and shuffle before it."""
        groups = self.shuffle.groups if self.shuffle is not None else 1
        if kernels.join(self.compress, self.depthwise, shuffle_groups=groups):
            self.shuffle = None  # the depthwise kernel reads the channels in shuffled order
        if self.pool is not None and self.pool.pad_mode == "PAD":
            self.pool = kernels.average_pool(channels=self.concat.first_channels)


class ShuffleNetV1(nn.Cell):
    """Backbone: normalised pixels (N, in_channels, H, W) to features (N, out_features)."""

    variants = {0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}  # width multiplier: channels of the stem
    # Number of groups: channels at 1.0x. Each later stage has twice the channels.
    stage2_channels = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
    options = {"groups": Option(3, tuple(stage2_channels))}
    stage_repeats = (4, 8, 4)

    def __init__(self, width: float = 1.0, groups: int = 3, in_channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__()
        # With 8 groups the authors' 0.5x stem has 16 channels, because the groups must divide the branch of stage 2.
        stem_channels = 16 if (width, groups) == (0.5, 8) else self.variants[width]
        self.stem = ConvNormAct(in_channels, stem_channels, 3, stem_stride)
        self.pool = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1) if stem_stride == 2 else None
        units, channels = [], stem_channels
        for stage, repeats in enumerate(self.stage_repeats):
            out_channels = int(self.stage2_channels[groups] * width) * 2**stage
            for unit in range(repeats):
                # The input of stage 2 has few channels, so its first 1x1 convolution is not grouped (section 3.2).
                first_groups = 1 if stage == unit == 0 else groups
                units.append(ShuffleUnit(channels, out_channels, 2 if unit == 0 else 1, groups, first_groups))
                channels = out_channels
        self.units = nn.SequentialCell(units)
        self.out_features = channels
        self.global_pool = GlobalPool()

    def pad_same(self) -> None:
        """Let the poolings pad as in mindcv; the average does not count the padding."""
        if self.pool is not None:
            self.pool = nn.MaxPool2d(3, 2, pad_mode="same")
        for unit in self.units:
            if unit.pool is not None:
                unit.pool = nn.AvgPool2d(3, 2, pad_mode="same")

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        x = self.stem(x)
        if self.pool is not None:
            x = self.pool(x)
        return ops.flatten(self.global_pool(self.units(x)))
