"""MnasNet-B1, without SE: https://arxiv.org/abs/1807.11626, section 5. Figure 7 shows A1, the variant with SE."""

import mindspore as ms
from mindspore import nn, ops

from src.models.layers import ConvNormAct, GlobalPool, InvertedResidual, make_divisible


class MnasNet(nn.Cell):
    """Backbone: normalised pixels (N, in_channels, H, W) to features (N, out_features)."""

    variants = (0.5, 0.75, 1.0, 1.3, 1.4)  # width multipliers
    out_features = 1280  # at every width
    stages = (  # kernel size, expansion, channels at 1.0x, repeats, stride of the first repeat
        (3, 1, 16, 1, 1),
        (3, 3, 24, 3, 2),
        (5, 3, 40, 3, 2),
        (5, 6, 80, 3, 2),
        (3, 6, 96, 2, 1),
        (5, 6, 192, 4, 2),
        (3, 6, 320, 1, 1),
    )

    def __init__(self, width: float = 1.0, in_channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__()
        channels = make_divisible(32 * width)
        self.stem = ConvNormAct(in_channels, channels, 3, stem_stride)
        blocks = []
        for kernel_size, expansion, base_channels, repeats, first_stride in self.stages:
            out_channels = make_divisible(base_channels * width)
            for block in range(repeats):
                stride = first_stride if block == 0 else 1
                hidden = channels * expansion
                blocks.append(InvertedResidual(channels, hidden, out_channels, kernel_size, stride, nn.ReLU))
                channels = out_channels
        self.blocks = nn.SequentialCell(blocks)
        self.last = ConvNormAct(channels, self.out_features, 1)
        self.global_pool = GlobalPool()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return ops.flatten(self.global_pool(self.last(self.blocks(self.stem(x)))))
