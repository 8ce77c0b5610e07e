"""Cells of a network outside src/models: their `fuse` decides what the native kernels compute together."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.config.load import make_config
from src.kernels import cells
from src.kernels.convert import use_kernels
from src.models.layers import ConvNormAct


class Block(nn.Cell):
    def __init__(self):
        super().__init__()
        self.expand = ConvNormAct(2, 4, 1)
        self.depthwise = ConvNormAct(4, 4, 3, groups=4)

    def construct(self, x):
        return self.depthwise(self.expand(x))

    def fuse(self, kernels):
        assert kernels.join(self.expand, self.depthwise)


class Halving(nn.Cell):
    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(3, 2, pad_mode="pad", padding=1)

    def construct(self, x):
        return self.pool(x)

    def fuse(self, kernels):
        return kernels.average_pool(channels=4)


@pytest.mark.parametrize("kernels", ["native", "stock"])
def test_a_cell_s_fuse_is_called(kernels):
    network = nn.SequentialCell(Block(), Halving()).set_train(False)
    block = network[0]
    # All weights are 1, and BatchNorm only adds beta: the root of variance and epsilon is 1.
    for layer, beta in ((block.expand, -1), (block.depthwise, -5)):
        layer.conv.weight.set_data(ms.ops.ones_like(layer.conv.weight))
        layer.norm.moving_variance.set_data(ms.Tensor(np.full(4, 1 - 1e-5, np.float32)))
        layer.norm.beta.set_data(ms.Tensor(np.full(4, beta, np.float32)))
    use_kernels(network, make_config({"runtime": {"kernels": kernels}}).runtime)
    assert isinstance(block.depthwise.conv, cells.Depthwise) == (kernels == "native")
    assert isinstance(block.expand.norm, nn.Identity) == (kernels == "native")
    assert isinstance(network[1], cells.AveragePool) == (kernels == "native")

    x = ms.Tensor(np.ones((1, 2, 3, 3), np.float32))
    # The expansion gives 1 + 1 - 1 = 1 everywhere. Of nine taps, 4 are inside the image at a corner, 6 at an edge and
    # 9 in the centre; 5 is subtracted, and ReLU makes the corners 0.
    expected = np.broadcast_to([[0, 1, 0], [1, 4, 1], [0, 1, 0]], (1, 4, 3, 3))
    np.testing.assert_allclose(block(x).asnumpy(), expected, atol=1e-5)
    # Each of the four windows has a corner, two edges and the centre inside the image: (0 + 1 + 1 + 4) / 9.
    np.testing.assert_allclose(network(x).asnumpy(), np.full((1, 4, 2, 2), 2 / 3), atol=1e-5)
