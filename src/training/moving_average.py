"""The exponential moving average (EMA) of a network's weights."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Callable

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.runtime.device import compile_graph
from src.runtime.setter import Setter


class MovingAverage:
    """Moving averages of all weights and BatchNorm statistics of a network.

    average = decay * average + (1 - decay) * weights, as in arXiv 1512.00567, section 8. The averages are float32
    arrays on the host. A CPU computes them faster in this way than in a compiled graph, which has three operators for
    each parameter.
    """

    def __init__(self, network: nn.Cell, decay: float) -> None:
        self.parameters = network.parameters_dict()
        self.set_parameters = Setter(self.parameters.values())
        self.decay = decay
        self.averages: Any = {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}
        self.shares = np.zeros(0, np.float32)
        self.done = 0

    def begin(self, updates: int, count: int) -> None:
        """Prepare the next `count` updates; `updates` is the number of updates of the weights so far."""
        self.shares, self.done = shares(self.decay, updates, count), 0

    def update(self) -> None:
        """Add the current weights to the average."""
        share = self.shares[self.done]
        self.done += 1
        for name, parameter in self.parameters.items():
            value = self.averages[name]
            value += share * (parameter.asnumpy() - value)

    def values(self) -> dict[str, np.ndarray]:
        """Return the averages by name."""
        return self.averages

    def load(self, values: Mapping[str, ms.Parameter]) -> None:
        """Set the averages to the `values` of a checkpoint, by name."""
        self.averages = {name: values[name].asnumpy().copy() for name in self.parameters}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network its averages as weights within this context."""
        weights = {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}
        try:
            self.fill(self.values())
            yield
        finally:
            self.fill(weights)

    def fill(self, values: Mapping[str, np.ndarray]) -> None:
        """Set the network's parameters to the `values`, by name."""
        self.set_parameters([values[name] for name in self.parameters])


class DeviceMovingAverage(MovingAverage):
    """The same averages, bit by bit, in the memory of a device: it does not wait for the host, nor the host for it."""

    def __init__(self, network: nn.Cell, decay: float, compiled: bool) -> None:
        super().__init__(network, decay)
        weights = ms.ParameterTuple(self.parameters.values())
        self.averages = averages = weights.clone("average", "same")
        self.position = position = ms.Parameter(ms.Tensor(0, ms.int32), name="average_position", requires_grad=False)
        self.set_averages, self.set_position = Setter(averages), Setter([position])
        each = ops.HyperMap()

        def add(table):
            share = ops.gather(table, position, 0)
            done = each(ops.partial(add_weight, share), averages, weights)
            return ops.depend(share, (done, ops.assign(position, position + 1)))

        self.add: Callable[..., Any] = compile_graph(add) if compiled else add

    def begin(self, updates: int, count: int) -> None:
        """Send the shares of the next `count` updates to the device."""
        self.table = ms.Tensor(shares(self.decay, updates, count))
        self.set_position([np.array(0, np.int32)])

    def update(self) -> None:
        """Start to add the current weights to the average, on the device."""
        self.add(self.table)

    def values(self) -> dict[str, np.ndarray]:
        """Return the averages by name, copied from the device."""
        return {name: average.asnumpy().copy() for name, average in zip(self.parameters, self.averages)}

    def load(self, values: Mapping[str, ms.Parameter]) -> None:
        """Set the averages to the `values` of a checkpoint, by name."""
        self.set_averages([values[name].asnumpy() for name in self.parameters])


def add_weight(share: ms.Tensor, average: ms.Parameter, weight: ms.Parameter) -> ms.Tensor:
    """Move an average towards the weight by this share of the difference."""
    return ops.assign_add(average, share * (weight - average))


def shares(decay: float, updates: int, count: int) -> np.ndarray:
    """Return the share of the weights in the average, 1 - decay, of the next `count` updates: float32 (count).

    The decay starts small, so that the average soon forgets the initial weights: min(decay, (1 + n) / (10 + n)) at the
    n-th update, as in TensorFlow's tf.train.ExponentialMovingAverage.
    """
    numbers = np.arange(updates + 1, updates + count + 1)
    return (1 - np.minimum(decay, (1 + numbers) / (10 + numbers))).astype(np.float32)


def create_average(network: nn.Cell, decay: float, compiled: bool) -> MovingAverage:
    """Return the moving average of the weights of the `network` for the current device."""
    if ms.get_context("device_target") == "CPU":
        return MovingAverage(network, decay)
    return DeviceMovingAverage(network, decay, compiled)
