"""Several processes that train one network together, as `msrun` starts them: their number and what they exchange."""

import atexit
import contextlib
import os
import sys
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.communication import get_group_size, get_rank, init


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self):
        """Say whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, values):
        """Return the sum over all ranks of an array, int64 or float64; all ranks get the same bits."""
        values = np.ascontiguousarray(values)
        if self.count == 1:
            return values
        # As int32, which every device gathers; a device's own sum could round, and differ in its order.
        gathered = ops.AllGather()(ms.Tensor(values.reshape(-1).view(np.int32))).asnumpy()
        return gathered.view(values.dtype).reshape(self.count, *values.shape).sum(0)

    def broadcast(self, parameters):
        """Give every rank the first one's values of the `parameters`."""
        if self.count > 1:
            send = ops.Broadcast(0)
            for parameter in parameters:
                parameter.set_data(send((parameter.value(),))[0])

    def gradient_mean(self, parameters):
        """Return the Cell that averages the gradients of the `parameters` over the ranks, or None for one rank."""
        return nn.DistributedGradReducer(parameters, mean=True, degree=self.count) if self.count > 1 else None

    def leave(self):
        """End the process, where it is one of several together with them: one that is gone takes others with it."""
        if self.count > 1:
            self.sum(np.zeros(1, np.int64))
            atexit._run_exitfuncs()
            sys.stdout.flush()
            # On a busy machine MindSpore 2.7.0, taken down by the interpreter, crashes one time in eight.
            os._exit(0)

    def output(self):
        """Return a context in which only the first rank prints."""
        return contextlib.nullcontext() if self.is_first else contextlib.redirect_stdout(open(os.devnull, "w"))


def join_ranks():
    """Meet the other processes that `msrun` started, once the device is set; return this one's `Ranks`."""
    if "MS_ROLE" not in os.environ:
        return Ranks()
    init()  # msrun's scheduler, which runs this script too, does not come back from here
    ranks = Ranks(get_rank(), get_group_size())
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=ranks.count
    )
    return ranks


class SyncNorm(nn.Cell):
    """BatchNorm over the images of all ranks: in training, statistics are of the whole global batch."""

    def __init__(self, norm, ranks):
        super().__init__()
        self.gamma, self.beta = norm.gamma, norm.beta
        self.moving_mean, self.moving_variance = norm.moving_mean, norm.moving_variance
        self.eps = norm.eps
        self.momentum = norm.momentum  # as the Cell keeps it: the share of the new statistics
        self.ranks = ranks
        self.total = ops.AllReduce()

    def construct(self, x):
        if self.training:
            count = self.ranks * x.shape[0] * x.shape[2] * x.shape[3]
            mean = self.total(ops.reduce_sum(x, (0, 2, 3))) / count
            variance = self.total(ops.reduce_sum(ops.square(x - channelwise(mean)), (0, 2, 3))) / count
            new_mean = self.moving_mean + self.momentum * (ops.stop_gradient(mean) - self.moving_mean)
            unbiased = ops.stop_gradient(variance) * (count / (count - 1))
            new_variance = self.moving_variance + self.momentum * (unbiased - self.moving_variance)
            mean = ops.depend(mean, ops.assign(self.moving_mean, new_mean))
            variance = ops.depend(variance, ops.assign(self.moving_variance, new_variance))
        else:
            mean, variance = self.moving_mean, self.moving_variance
        scale = self.gamma * ops.rsqrt(variance + self.eps)
        return (x - channelwise(mean)) * channelwise(scale) + channelwise(self.beta)


def channelwise(values):
    """(C) to (1, C, 1, 1)."""
    return ops.reshape(values, (1, -1, 1, 1))


def synchronise_norms(network, ranks):
    """Let every BatchNorm of the `network` use the statistics of all ranks' images; parameters and names stay."""
    for cell in [cell for _, cell in network.cells_and_names()]:
        for i, (name, child) in enumerate(list(cell.name_cells().items())):
            if isinstance(child, nn.BatchNorm2d):
                names = [parameter.name for parameter in child.get_parameters()]
                if isinstance(cell, nn.SequentialCell):
                    cell[i] = SyncNorm(child, ranks)
                else:
                    setattr(cell, name, SyncNorm(child, ranks))
                for parameter, old in zip(child.get_parameters(), names):
                    parameter.name = old
