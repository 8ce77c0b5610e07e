"""MobileNetV3: https://arxiv.org/abs/1905.02244, section 5 and tables 1 (large) and 2 (small)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import mindspore as ms
from mindspore import nn, ops

from src.models.layers import ConvNormAct, GlobalPool, InvertedResidual, make_divisible, pad_same

# The authors train with decay 0.99 and epsilon 0.001 (TensorFlow's terms).
NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.99)


class MobileNetV3(nn.Cell):
    """Backbone: normalised pixels (N, in_channels, H, W) to features (N, out_features).

    The networks are its subclasses `MobileNetV3Large` and `MobileNetV3Small`.
    """

    variants = (0.75, 1.0)  # width multipliers

    def __init__(
        self,
        bottlenecks: Sequence[tuple[Any, ...]],
        out_features: int,
        width: float,
        in_channels: int,
        stem_stride: int,
    ) -> None:
        super().__init__()
        base_in, channels = 16, make_divisible(16 * width)
        self.stem = ConvNormAct(in_channels, channels, 3, stem_stride, activation=nn.HSwish, norm=NORM)
        blocks = []
        for kernel_size, base_hidden, base_channels, squeeze, activation, stride in bottlenecks:
            # The authors' code multiplies the rounded input channels by the table's expansion ratio. It does not scale
            # the table's hidden channels.
            hidden = make_divisible(channels * base_hidden / base_in)
            out_channels = make_divisible(base_channels * width)
            reduced = make_divisible(hidden / 4) if squeeze else None
            blocks.append(
                InvertedResidual(channels, hidden, out_channels, kernel_size, stride, activation, reduced, NORM)
            )
            base_in, channels = base_channels, out_channels
        self.blocks = nn.SequentialCell(blocks)
        self.last = ConvNormAct(channels, 6 * channels, 1, activation=nn.HSwish, norm=NORM)
        # This layer follows the pooling, so it costs little. Width multipliers below 1.0 do not shrink it.
        self.widen = nn.Dense(6 * channels, out_features)
        self.act = nn.HSwish()
        self.out_features = out_features
        self.global_pool = GlobalPool()

    def pad_same(self) -> None:
        """Let the depthwise convolutions at stride 2 pad as in mindcv. At stride 1, both paddings are the same."""
        for block in self.blocks:
            for layer in block.layers:
                if isinstance(layer, ConvNormAct) and layer.conv.stride == (2, 2):
                    pad_same(layer)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.act(self.widen(ops.flatten(self.global_pool(self.last(self.blocks(self.stem(x)))))))


class MobileNetV3Large(MobileNetV3):
    """Table 1 of the paper."""

    bottlenecks = (  # kernel size, hidden channels and output channels at 1.0x, SE, activation, stride
        (3, 16, 16, False, nn.ReLU, 1),
        (3, 64, 24, False, nn.ReLU, 2),
        (3, 72, 24, False, nn.ReLU, 1),
        (5, 72, 40, True, nn.ReLU, 2),
        (5, 120, 40, True, nn.ReLU, 1),
        (5, 120, 40, True, nn.ReLU, 1),
        (3, 240, 80, False, nn.HSwish, 2),
        (3, 200, 80, False, nn.HSwish, 1),
        (3, 184, 80, False, nn.HSwish, 1),
        (3, 184, 80, False, nn.HSwish, 1),
        (3, 480, 112, True, nn.HSwish, 1),
        (3, 672, 112, True, nn.HSwish, 1),
        (5, 672, 160, True, nn.HSwish, 2),
        (5, 960, 160, True, nn.HSwish, 1),
        (5, 960, 160, True, nn.HSwish, 1),
    )

    def __init__(self, width: float = 1.0, in_channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__(self.bottlenecks, 1280, width, in_channels, stem_stride)


class MobileNetV3Small(MobileNetV3):
    """Table 2 of the paper."""

    bottlenecks = (  # kernel size, hidden channels and output channels at 1.0x, SE, activation, stride
        (3, 16, 16, True, nn.ReLU, 2),
        (3, 72, 24, False, nn.ReLU, 2),
        (3, 88, 24, False, nn.ReLU, 1),
        (5, 96, 40, True, nn.HSwish, 2),
        (5, 240, 40, True, nn.HSwish, 1),
        (5, 240, 40, True, nn.HSwish, 1),
        (5, 120, 48, True, nn.HSwish, 1),
        (5, 144, 48, True, nn.HSwish, 1),
        (5, 288, 96, True, nn.HSwish, 2),
        (5, 576, 96, True, nn.HSwish, 1),
        (5, 576, 96, True, nn.HSwish, 1),
    )

    def __init__(self, width: float = 1.0, in_channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__(self.bottlenecks, 1024, width, in_channels, stem_stride)
