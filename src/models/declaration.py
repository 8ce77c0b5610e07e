"""What networks declare about themselves. Settings, cost counting and native kernels read these declarations.

A network class has `variants`, its published width multipliers, and `out_features`, the number of features before the
classifier. `model.freeze` expects the stem as its first child and the blocks in its first `SequentialCell`. A
network class may have `options`, the settings that only this network has, and `layers_per_block`, the number of
consecutive layers that form a block (default: 1). A network class that has the setting `model.padding` has a method
`pad_same()`, which changes the padding of its layers from symmetric to same.

Any cell may have two methods:

- `operations(x, y)` returns the `Operation`s that `construct` executes outside the cell's layers, for one image. `x`
  and `y` are the shapes of the first input and of the output, without the batch dimension.
- `fuse(kernels)` tells the native kernels which of the cell's layers they can compute together. It may return a Cell
  that replaces the whole cell. If it returns None, the cell's layers are converted separately.
"""

import math
from typing import Any, NamedTuple, Optional, Protocol

from mindspore import nn

Shape = tuple[int, ...]


class Option(NamedTuple):
    """A setting that only one network has, such as ShuffleNetV1's groups: its default and all allowed values."""

    default: Any
    allowed: tuple[Any, ...]


class Operation(NamedTuple):
    """An operation outside the layers. `accesses` is the number of elements that it reads and writes.

    `kind` is one of KINDS in `src/cost/count.py`.
    """

    type: str
    kind: str
    input: Shape
    output: Shape
    accesses: int


def elements(*shapes: Shape) -> int:
    """Return the total number of elements of feature maps with these shapes."""
    return sum(math.prod(shape) for shape in shapes)


def element_wise(name: str, shape: Shape, operands: int = 1) -> Operation:
    """Return the operation that reads `operands` feature maps of a shape and writes a feature map of this shape."""
    return Operation(name, "element-wise", shape, shape, (operands + 1) * elements(shape))


class NativeKernels(Protocol):
    """What a cell's `fuse` can ask of the native kernels; `src/kernels/convert.py` has the implementation."""

    def join(self, before: nn.Cell, after: nn.Cell, shuffle_groups: int = 1) -> bool:
        """Let the depthwise layer `after` also compute BatchNorm and activation of the layer `before`, if possible."""

    def average_pool(self, channels: int) -> nn.Cell:
        """Return the native Cell for 3x3 average pooling at stride 2, padded by 1."""

    def preprocess(self, preprocess: nn.Cell) -> nn.Cell:
        """Return the native Cell for the normalisation of images."""

    def ghost(self, module: nn.Cell) -> Optional[nn.Cell]:
        """Return the native Cell that replaces a `GhostModule`, or None if the kernels do not support it."""

    def shuffle_unit(self, branch: nn.SequentialCell, interleaved: bool) -> Optional[nn.Cell]:
        """Return the native Cell for a unit of ShuffleNetV2 at stride 1, or None if the kernels do not support it.

        `interleaved` says whether the unit splits its input into even and odd channels.
        """
