"""The networks with which ShuffleNetV2 measures its guidelines: https://arxiv.org/abs/1807.11164, tables 1 to 4."""

from collections.abc import Iterable
from functools import partial
from typing import Callable, NamedTuple

import mindspore as ms
from mindspore import nn, ops

BLOCKS = 10  # blocks in each network


class Benchmark(NamedTuple):
    """A network to measure. `channels` is the number of its input channels."""

    label: str
    channels: int
    network: nn.SequentialCell


def convolution(in_channels: int, out_channels: int, kernel_size: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the feature map's size."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        pad_mode="pad",
        padding=kernel_size // 2,
        group=groups,
        has_bias=False,
    )


class Parallel(nn.Cell):
    """Add the outputs of `count` parallel 1x1 convolutions: (1, channels, H, W) to the same shape."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.branches = nn.CellList([convolution(channels, channels) for _ in range(count)])

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


class Bottleneck(nn.Cell):
    """ResNet's bottleneck without BatchNorm: (1, channels, H, W) to the same shape."""

    def __init__(self, channels: int, relu: bool, shortcut: bool) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.reduce = convolution(channels, inner)
        self.spatial = convolution(inner, inner, 3)
        self.expand = convolution(inner, channels)
        self.relu, self.shortcut = relu, shortcut

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        y = self.reduce(x)
        y = self.spatial(ops.relu(y) if self.relu else y)
        y = self.expand(ops.relu(y) if self.relu else y)
        if self.shortcut:
            y = x + y
        return ops.relu(y) if self.relu else y


def stack(label: str, channels: int, block: Callable[..., Iterable[nn.Cell]]) -> Benchmark:
    """Return the `Benchmark` of BLOCKS blocks; `block()` returns the cells of a block."""
    return Benchmark(label, channels, nn.SequentialCell([cell for _ in range(BLOCKS) for cell in block()]))


def benchmarks(channels: int) -> dict[str, list[Benchmark]]:
    """Return the benchmarks of each guideline, in the order of the paper's tables.

    `channels` is c in the paper's tables 2 to 4 (ARM: 64). Table 1 starts with half of it (32). Channels are whole
    numbers, so the MACs of a guideline's benchmarks differ by some percent.
    """

    def narrowed(factor, multiple=1):
        return max(1, round(channels * factor**0.5 / multiple)) * multiple

    g1, g2, g3, g4 = [], [], [], []
    for ratio in (1, 2, 6, 12):
        a = max(1, int(channels / 2 / ratio**0.5))
        b = a * ratio
        g1.append(stack(f"1:{ratio} ({a}, {b})", a, lambda a=a, b=b: (convolution(a, b), convolution(b, a))))
    for groups in (1, 2, 4, 8):
        c = narrowed(groups, groups)
        g2.append(stack(f"{groups} (c={c})", c, lambda c=c, groups=groups: [convolution(c, c, groups=groups)]))
    for count in (1, 2, 4):
        c = narrowed(1 / count)
        label = f"{count}{' in series' if count > 1 else ''} (c={c})"
        g3.append(stack(label, c, lambda c=c, count=count: [convolution(c, c) for _ in range(count)]))
    for count in (2, 4):
        c = narrowed(1 / count)
        g3.append(stack(f"{count} in parallel (c={c})", c, lambda c=c, count=count: [Parallel(c, count)]))
    for relu, shortcut in ((True, True), (True, False), (False, True), (False, False)):
        used = " and ".join(name for name, on in (("ReLU", relu), ("shortcut", shortcut)) if on) or "neither"
        block = partial(Bottleneck, channels, relu, shortcut)
        g4.append(stack(f"{used} (c={channels})", channels, lambda block=block: [block()]))
    return {"G1": g1, "G2": g2, "G3": g3, "G4": g4}


def stacked_macs(network: nn.Cell, image_size: int) -> int:
    """Return the MACs for feature maps of `image_size` x `image_size`. All convolutions here keep this size."""
    weights = sum(cell.weight.size for _, cell in network.cells_and_names() if isinstance(cell, nn.Conv2d))
    return weights * image_size**2
