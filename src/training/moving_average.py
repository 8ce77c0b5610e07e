"""The exponential moving average of a network's weights."""

import contextlib

import mindspore as ms


class MovingAverage:
    """Averages of all weights and moving statistics of a network.

    average = decay * average + (1 - decay) * weights, as in arXiv 1512.00567, section 8. They are `values`, {name:
    float32 array}, on the host: in the compiled step they would be four more operators a parameter.
    """

    def __init__(self, network, decay):
        self.parameters = network.parameters_dict()
        self.decay = decay
        self.values = {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}

    def update(self, updates):
        """Take in the present weights, after so many `updates`.

        The decay is warmed up, so that the initial weights are soon forgotten: min(decay, (1 + updates) /
        (10 + updates)), as TensorFlow's tf.train.ExponentialMovingAverage has it.
        """
        share = 1 - min(self.decay, (1 + updates) / (10 + updates))
        for name, parameter in self.parameters.items():
            value = self.values[name]
            value += share * (parameter.asnumpy() - value)

    def load(self, values):
        """Go on from averages that a checkpoint holds, {name: Parameter}."""
        self.values = {name: values[name].asnumpy().copy() for name in self.values}

    @contextlib.contextmanager
    def in_place(self):
        """Within this context the network has the averages for its weights."""
        own = {name: parameter.asnumpy().copy() for name, parameter in self.parameters.items()}
        self.fill(self.values)
        try:
            yield
        finally:
            self.fill(own)

    def fill(self, values):
        for name, parameter in self.parameters.items():
            parameter.set_data(ms.Tensor(values[name].copy()))
