"""Parameters that are set after the compilation of a graph: the graph computes with the new values."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from src.runtime.setter import Setter


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_a_compiled_graph_continues_from_the_values_that_were_set(mode):
    ms.set_context(mode=mode)
    counter = ms.Parameter(ms.Tensor(0, ms.int32), name="counter")
    weight = ms.Parameter(ms.Tensor(np.zeros((2, 3), np.float32)), name="weight")

    def step(x):
        return ops.depend(x, (ops.assign(counter, counter + 1), ops.assign(weight, weight + x)))

    step = ms.jit(step) if mode == ms.GRAPH_MODE else step
    one = ms.Tensor(np.ones((2, 3), np.float32))
    step(one)
    put = Setter([counter, weight])
    for start in (10, 40):
        values = [np.array(start, np.int32), np.arange(6, dtype=np.float32).reshape(2, 3) + start]
        expected = values[1].copy()
        put(values)
        values[1][:] = -1  # the parameters do not share the memory of the arrays
        step(one)
        step(one)
        assert counter.asnumpy() == start + 2
        np.testing.assert_array_equal(weight.asnumpy(), expected + 2)


def test_nothing_to_set():
    ms.set_context(mode=ms.GRAPH_MODE)
    Setter([])([])
