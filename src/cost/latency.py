"""Measure how long a network takes."""

from collections.abc import Sequence
from statistics import median
from time import perf_counter

import mindspore as ms
import numpy as np
from mindspore import nn


def warm_up(network: nn.Cell, batch: np.ndarray) -> None:
    """Run `network` twice on `batch`, so that it is compiled and all libraries are loaded."""
    network.set_train(False)
    for _ in range(2):
        network(ms.Tensor(batch)).asnumpy()


def median_ms(networks: Sequence[nn.Cell], batches: Sequence[np.ndarray], repeats: int) -> list[float]:
    """Return the median time in milliseconds of `repeats` runs for each network, on the batch with the same index.

    The networks must be warm. They take turns, so that other load on the machine affects all of them.
    """
    inputs = [ms.Tensor(batch) for batch in batches]
    times: list[list[float]] = [[] for _ in networks]
    for _ in range(repeats):
        for network, batch, network_times in zip(networks, inputs, times):
            start = perf_counter()
            network(batch).asnumpy()
            network_times.append((perf_counter() - start) * 1000)
    return [median(network_times) for network_times in times]
