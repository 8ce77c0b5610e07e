"""Set parameters after graphs were compiled that use them."""

from collections.abc import Iterable, Sequence
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import ops

from src.runtime.device import compile_graph


class Setter:
    """Sets `parameters` to arrays of the same shapes and dtypes, in the same order.

    `Parameter.set_data` gives a parameter new memory. In MindSpore 2.10.0, a graph that was compiled before keeps the
    old memory. So in graph mode a compiled graph copies the arrays into the memory that the parameters have.
    """

    def __init__(self, parameters: Iterable[ms.Parameter]) -> None:
        self.parameters = ms.ParameterTuple(parameters)
        self.copy: Optional[Callable[..., Any]] = None  # compiled at the first call

    def __call__(self, values: Sequence[np.ndarray]) -> None:
        # A Tensor may share the memory of its array, which the caller may change afterwards.
        tensors = [ms.Tensor(value.copy(), parameter.dtype) for parameter, value in zip(self.parameters, values)]
        if ms.get_context("mode") == ms.PYNATIVE_MODE:
            for parameter, tensor in zip(self.parameters, tensors):
                parameter.set_data(tensor)
        elif tensors:
            if self.copy is None:
                self.copy = compile_graph(make_copy(self.parameters))
            self.copy(*tensors)


def make_copy(parameters: ms.ParameterTuple) -> Callable[..., Any]:
    """Return `copy(*tensors)`, which can be compiled: it copies each Tensor into its parameter."""
    each = ops.HyperMap()

    def copy(*tensors):
        return each(ops.assign, parameters, tensors)

    return copy
