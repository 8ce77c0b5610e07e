"""ShuffleNetV1: https://arxiv.org/abs/1707.01083, section 3 and table 1; layout of the authors' code."""

import math

from mindspore import nn, ops

from src.models.declaration import Option, element_wise
from src.models.layers import AddReLU, ChannelConcat, ChannelShuffle, ConvNormAct, GlobalPool


class ShuffleUnit(nn.Cell):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to its input, or at stride 2 beside the pooled input."""

    def __init__(self, in_channels, out_channels, stride, groups, first_groups):
        super().__init__()
        # out / 4 as in the paper; rounded up where the groups would not divide it (0.5x and 1.5x with groups 2, 4).
        bottleneck = math.ceil(out_channels / 4 / groups) * groups
        branch_out = out_channels - in_channels if stride == 2 else out_channels
        self.compress = ConvNormAct(in_channels, bottleneck, 1, groups=first_groups)
        # From runs of `groups` channels, as in the authors' code; the paper's text has it the other way.
        self.shuffle = ChannelShuffle(bottleneck // groups) if groups > 1 else None
        self.depthwise = ConvNormAct(bottleneck, bottleneck, 3, stride, groups=bottleneck, activation=None)
        self.expand = ConvNormAct(bottleneck, branch_out, 1, groups=groups, activation=None)
        self.pool = nn.AvgPool2d(3, 2, pad_mode="pad", padding=1) if stride == 2 else None
        self.concat = ChannelConcat(in_channels) if stride == 2 else None
        self.add = AddReLU() if stride == 1 else None

    def construct(self, x):
        branch = self.compress(x)
        if self.shuffle is not None:
            branch = self.shuffle(branch)
        branch = self.expand(self.depthwise(branch))
        if self.pool is None:
            return self.add(x, branch)
        return ops.relu(self.concat(self.pool(x), branch))

    def operations(self, x, y):
        return [] if self.pool is None else [element_wise("ReLU", y)]

    def fuse(self, kernels):
        runs = self.shuffle.groups if self.shuffle is not None else 1
        if kernels.join(self.compress, self.depthwise, runs=runs):
            self.shuffle = None  # the depthwise kernel reads the channels in shuffled order
        if self.pool is not None:
            self.pool = kernels.average_pool(channels=self.concat.first)


class ShuffleNetV1(nn.Cell):
    """(N, in_channels, H, W) to features (N, out_features)."""

    variants = {0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}  # width multiplier: channels of the stem
    stage2_channels = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # groups: width at 1.0x, doubled in each later stage
    options = {"groups": Option(3, tuple(stage2_channels))}
    stage_repeats = (4, 8, 4)

    def __init__(self, width=1.0, groups=3, in_channels=3, stem_stride=2):
        super().__init__()
        # With 8 groups the authors' 0.5x stem has 16 channels, so that the groups divide stage 2's branch.
        stem_channels = 16 if (width, groups) == (0.5, 8) else self.variants[width]
        self.stem = ConvNormAct(in_channels, stem_channels, 3, stem_stride)
        self.pool = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1) if stem_stride == 2 else None
        units, channels = [], stem_channels
        for stage, repeats in enumerate(self.stage_repeats):
            out_channels = int(self.stage2_channels[groups] * width) * 2**stage
            for unit in range(repeats):
                # Stage 2 starts from so few channels that its first 1x1 is not grouped (section 3.2).
                first_groups = 1 if stage == unit == 0 else groups
                units.append(ShuffleUnit(channels, out_channels, 2 if unit == 0 else 1, groups, first_groups))
                channels = out_channels
        self.units = nn.SequentialCell(units)
        self.out_features = channels
        self.global_pool = GlobalPool()

    def construct(self, x):
        x = self.stem(x)
        if self.pool is not None:
            x = self.pool(x)
        return ops.flatten(self.global_pool(self.units(x)))
