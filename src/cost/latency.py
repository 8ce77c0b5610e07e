"""How long a network takes."""

from statistics import median
from time import perf_counter

import mindspore as ms


def warm_up(network, batch):
    """Run `network` twice on `batch`, an array, so that it is compiled and what it loads late is loaded."""
    network.set_train(False)
    for _ in range(2):
        network(ms.Tensor(batch)).asnumpy()


def median_ms(networks, batches, repeats):
    """Return the median milliseconds of each of the `networks` on its own of the `batches`, arrays, in `repeats` runs.

    The networks, warm already, take turns, so that what else the machine does meets all of them.
    """
    batches = [ms.Tensor(batch) for batch in batches]
    times = [[] for _ in networks]
    for _ in range(repeats):
        for network, batch, own in zip(networks, batches, times):
            start = perf_counter()
            network(batch).asnumpy()
            own.append((perf_counter() - start) * 1000)
    return [median(own) for own in times]
