"""The exponential moving average (EMA) of a network's weights."""

import contextlib
from collections.abc import Iterator, Mapping

import mindspore as ms
import numpy as np
from mindspore import nn


class MovingAverage:
    """Moving averages of all weights and BatchNorm statistics of a network.

    average = decay * average + (1 - decay) * weights, as in arXiv 1512.00567, section 8. `values` maps names to float32
    arrays on the host. In the compiled step, the average would add four operators for each parameter.
    """

    def __init__(self, network: nn.Cell, decay: float) -> None:
        self.parameters = network.parameters_dict()
        self.decay = decay
        self.values = {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}

    def update(self, updates: int) -> None:
        """Add the current weights to the average; `updates` is the number of updates of the weights so far.

        The decay starts small, so that the average soon forgets the initial weights: min(decay, (1 + updates) /
        (10 + updates)), as in TensorFlow's tf.train.ExponentialMovingAverage.
        """
        share = 1 - min(self.decay, (1 + updates) / (10 + updates))
        for name, parameter in self.parameters.items():
            value = self.values[name]
            value += share * (parameter.asnumpy() - value)

    def load(self, values: Mapping[str, ms.Parameter]) -> None:
        """Set the averages to the `values` of a checkpoint, by name."""
        self.values = {name: values[name].asnumpy().copy() for name in self.values}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network its averages as weights within this context."""
        weights = {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}
        try:
            self.fill(self.values)
            yield
        finally:
            self.fill(weights)

    def fill(self, values: Mapping[str, np.ndarray]) -> None:
        """Set the network's parameters to the `values`, by name."""
        for name, parameter in self.parameters.items():
            parameter.set_data(ms.Tensor(values[name].copy()))
