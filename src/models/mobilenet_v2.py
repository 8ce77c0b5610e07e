"""MobileNetV2: https://arxiv.org/abs/1801.04381, section 4 and table 2."""

import mindspore as ms
from mindspore import nn, ops

from src.models.layers import ConvNormAct, GlobalPool, InvertedResidual, make_divisible


class MobileNetV2(nn.Cell):
    """Backbone: normalised pixels (N, in_channels, H, W) to features (N, out_features)."""

    variants = (0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4)  # width multipliers
    stages = (  # expansion, channels at 1.0x, repeats, stride of the first repeat
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, width: float = 1.0, in_channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__()
        channels = make_divisible(32 * width)
        self.stem = ConvNormAct(in_channels, channels, 3, stem_stride, activation=nn.ReLU6)
        blocks = []
        for expansion, base_channels, repeats, first_stride in self.stages:
            out_channels = make_divisible(base_channels * width)
            for block in range(repeats):
                stride = first_stride if block == 0 else 1
                blocks.append(InvertedResidual(channels, channels * expansion, out_channels, 3, stride, nn.ReLU6))
                channels = out_channels
        self.blocks = nn.SequentialCell(blocks)
        # The paper does not shrink the last layer for width multipliers below 1.0 (section 5.1).
        self.out_features = make_divisible(1280 * max(1.0, width))
        self.last = ConvNormAct(channels, self.out_features, 1, activation=nn.ReLU6)
        self.global_pool = GlobalPool()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return ops.flatten(self.global_pool(self.last(self.blocks(self.stem(x)))))
