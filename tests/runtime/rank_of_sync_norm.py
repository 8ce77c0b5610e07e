"""A script that test_parallel.py runs with msrun: each rank computes its part of a synchronised BatchNorm."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mindspore as ms
import numpy as np
from mindspore import nn

from src.runtime.parallel import join_ranks, synchronise_norms


def main(folder):
    """Write the results of this rank to a file in `folder`, once for each execution mode."""
    ms.set_device("CPU")
    ranks = join_ranks()
    images, weights = np.load(folder / "images.npy"), np.load(folder / "weights.npy")
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        network = nn.SequentialCell(nn.BatchNorm2d(images.shape[1], momentum=0.8))
        synchronise_norms(network, ranks.count)
        network.set_train(True)
        gradients_of = make_gradients(network)
        if mode == ms.GRAPH_MODE:
            gradients_of = ms.jit(gradients_of)
        chosen = slice(ranks.rank, None, ranks.count)
        total, (dx, dparams) = gradients_of(ms.Tensor(images[chosen]), ms.Tensor(weights[chosen]))
        np.savez(
            folder / f"{mode}-{ranks.rank}.npz",
            loss=ranks.sum(np.float64([total.asnumpy()])),
            dx=dx.asnumpy(),
            dparams=ranks.sum(np.float64([dparam.asnumpy() for dparam in dparams])),
            moving_mean=network[0].moving_mean.asnumpy(),
            moving_variance=network[0].moving_variance.asnumpy(),
        )


def make_gradients(network):
    def loss(x, w):
        return (network(x) * w).sum()

    return ms.value_and_grad(loss, 0, network.trainable_params())


main(Path(sys.argv[1]))
