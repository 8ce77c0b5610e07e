"""ShuffleNetV2: https://arxiv.org/abs/1807.11164, section 3 and table 5."""

from typing import Optional

import mindspore as ms
from mindspore import nn, ops

from src.models.declaration import NativeKernels, Option
from src.models.layers import ChannelConcat, ChannelSplit, ConvNormAct, GlobalPool


class ShuffleUnit(nn.Cell):
    """ShuffleNetV2's unit (figure 3).

    At stride 1, half of the channels pass unchanged and the branch convolves the other half. At stride 2, the shortcut
    and the branch both convolve all channels.

    In the authors' layout the even channels pass, and the shortcut at stride 2 has as many outputs as inputs. In the
    equal-split layout the first half passes, shortcut and branch have the same number of outputs, and the unit
    shuffles its output.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, equal_split: bool) -> None:
        super().__init__()
        branch_in = in_channels if stride == 2 else in_channels // 2
        bottleneck = out_channels // 2
        shortcut_out = bottleneck if equal_split else branch_in
        self.branch = nn.SequentialCell(
            ConvNormAct(branch_in, bottleneck, 1),
            ConvNormAct(bottleneck, bottleneck, 3, stride, groups=bottleneck, activation=None),
            ConvNormAct(bottleneck, out_channels - shortcut_out, 1),
        )
        self.shortcut = self.split = None
        if stride == 2:
            self.shortcut = nn.SequentialCell(
                ConvNormAct(branch_in, branch_in, 3, stride, groups=branch_in, activation=None),
                ConvNormAct(branch_in, shortcut_out, 1),
            )
        else:
            # In the authors' layout, taking the even channels is the paper's shuffle and channel split in one step.
            self.split = ChannelSplit(in_channels, interleaved=not equal_split)
        self.concat = ChannelConcat(shortcut_out, interleaved=equal_split)

    def fuse(self, kernels: NativeKernels) -> Optional[nn.Cell]:
        """Return the native Cell that replaces the unit at stride 1, or None."""
        return None if self.split is None else kernels.shuffle_unit(self.branch, self.split.interleaved)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        shortcut, branch = (x, x) if self.split is None else self.split(x)
        if self.shortcut is not None:
            shortcut = self.shortcut(shortcut)
        return self.concat(shortcut, self.branch(branch))


class ShuffleNetV2(nn.Cell):
    """Backbone: normalised pixels (N, in_channels, H, W) to features (N, out_features)."""

    variants = {  # width multiplier: channels of stages 2, 3, 4 and of the last 1x1 convolution
        0.5: (48, 96, 192, 1024),
        1.0: (116, 232, 464, 1024),
        1.5: (176, 352, 704, 1024),
        2.0: (244, 488, 976, 2048),
    }
    options = {"layout": Option("authors", ("authors", "equal_split"))}
    stage_repeats = (4, 8, 4)

    def __init__(self, width: float = 1.0, layout: str = "authors", in_channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__()
        *stage_channels, self.out_features = self.variants[width]
        channels = 24
        self.stem = ConvNormAct(in_channels, channels, 3, stem_stride)
        self.pool = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1) if stem_stride == 2 else None
        units = []
        for out_channels, repeats in zip(stage_channels, self.stage_repeats):
            for unit in range(repeats):
                stride = 2 if unit == 0 else 1
                units.append(ShuffleUnit(channels, out_channels, stride, layout == "equal_split"))
                channels = out_channels
        self.units = nn.SequentialCell(units)
        self.last = ConvNormAct(channels, self.out_features, 1)
        self.global_pool = GlobalPool()

    def pad_same(self) -> None:
        """Let the max pooling pad as in mindcv."""
        if self.pool is not None:
            self.pool = nn.MaxPool2d(3, 2, pad_mode="same")

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        x = self.stem(x)
        if self.pool is not None:
            x = self.pool(x)
        return ops.flatten(self.global_pool(self.last(self.units(x))))
