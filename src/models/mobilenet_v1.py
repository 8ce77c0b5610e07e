"""MobileNetV1: https://arxiv.org/abs/1704.04861, section 3 and table 1."""

import mindspore as ms
from mindspore import nn, ops

from src.models.layers import ConvNormAct, GlobalPool


class MobileNetV1(nn.Cell):
    """Backbone: normalised pixels (N, in_channels, H, W) to features (N, out_features)."""

    variants = (0.25, 0.5, 0.75, 1.0)  # width multipliers
    layers_per_block = 2  # a block is a depthwise and a 1x1 convolution
    stages = (  # channels at 1.0x, stride of the depthwise convolution
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    )

    def __init__(self, width: float = 1.0, in_channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__()
        channels = int(32 * width)
        self.stem = ConvNormAct(in_channels, channels, 3, stem_stride)
        layers = []
        for base_channels, stride in self.stages:
            out_channels = int(base_channels * width)
            layers.append(ConvNormAct(channels, channels, 3, stride, groups=channels))
            layers.append(ConvNormAct(channels, out_channels, 1))
            channels = out_channels
        self.layers = nn.SequentialCell(layers)
        self.out_features = channels
        self.global_pool = GlobalPool()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return ops.flatten(self.global_pool(self.layers(self.stem(x))))
