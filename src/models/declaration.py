"""What a network declares of itself, so that settings, cost counting and the native kernels need not know it by name.

A network class has `variants`, the width multipliers that it is published with, and may have `options`, settings of its
own, and `layers_per_block`. Any cell may have two methods:

- `operations(x, y)` returns the `Operation`s that `construct` executes outside the cell's layers, for one image, given
  the shapes of input and output without the batch;
- `fuse(kernels)` tells the native kernels what they may compute together (see `src/kernels/convert.py`).
"""

import math
from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Option(NamedTuple):
    """A setting that a network alone has, such as ShuffleNetV1's groups: its default and every allowed value."""

    default: Any
    allowed: tuple


class Operation(NamedTuple):
    """An operation outside the layers; `accesses` are the elements that it reads and writes, `kind` is a `Row`'s."""

    type: str
    kind: str
    input: Shape
    output: Shape
    accesses: int


def elements(*shapes: Shape) -> int:
    """Return the number of elements of feature maps of these shapes together."""
    return sum(math.prod(shape) for shape in shapes)


def element_wise(name: str, shape: Shape, operands: int = 1) -> Operation:
    """Return the operation that reads so many operands of a shape and writes a result of that shape."""
    return Operation(name, "element-wise", shape, shape, (operands + 1) * elements(shape))
