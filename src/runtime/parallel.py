"""Data parallel training in several processes (ranks): their numbers and what they exchange."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.communication import get_group_size, get_rank, init

from src import script
from src.errors import UserError, text_of
from src.launch import MSRUN, launcher
from src.runtime.device import ADVICE


@dataclass(frozen=True)
class Ranks:
    """The number of this process (`rank`), and how many processes train together (`count`)."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the first rank, which alone writes and prints."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of an int64 or float64 array over all ranks; all ranks get the same bits."""
        values = np.ascontiguousarray(values)
        if self.count == 1:
            return values
        # The bytes are gathered as int32, which every device supports. NumPy adds them, because the sum of a device may
        # round, and its order may differ between ranks.
        gathered = ops.AllGather()(ms.Tensor(values.reshape(-1).view(np.int32))).asnumpy()
        return gathered.view(values.dtype).reshape(self.count, *values.shape).sum(0)

    def mean(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the means of float32 arrays over all ranks, float32; all ranks get the same bits."""
        if self.count == 1 or not values:
            return list(values)
        means = self.sum(np.concatenate([value.astype(np.float64).ravel() for value in values])) / self.count
        ends = np.cumsum([value.size for value in values])[:-1]
        parts = np.split(means.astype(np.float32), ends)
        return [part.reshape(value.shape) for part, value in zip(parts, values)]

    def broadcast(self, parameters: Iterable[ms.Parameter]) -> None:
        """Set the `parameters` of every rank to the values of the first rank."""
        if self.count > 1:
            send = ops.Broadcast(0)
            for parameter in parameters:
                parameter.set_data(send((parameter.value(),))[0])

    def from_first(self, make: Callable[[], bytes]) -> bytes:
        """Return, on every rank, the bytes that `make` returns on the first rank; the other ranks do not call it.

        A `UserError` or an `OSError` of `make` ends all ranks: the other ranks raise a `UserError` with its message.
        """
        if self.count == 1:
            return make()
        content, problem = b"", None
        if self.is_first:
            try:
                content = make()
            except (UserError, OSError) as error:
                content, problem = text_of(error).encode(), error
        length, failed = self.sum(np.array([len(content), problem is not None], np.int64))
        words = np.zeros(-(-length // 4), np.int32)  # int32, because every device can send it
        words.view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
        if length:
            content = ops.Broadcast(0)((ms.Tensor(words),))[0].asnumpy().tobytes()[:length]
        if problem is not None:
            raise problem
        if failed:
            raise UserError(content.decode())
        return content

    def sharing(self) -> int:
        """Return the number of ranks that may use the same processors of the same machine, this rank included."""
        place = f"{socket.gethostname()} {sorted(os.sched_getaffinity(0))}"
        numbers = np.zeros(self.count, np.int64)
        numbers[self.rank] = np.frombuffer(hashlib.sha256(place.encode()).digest()[:8], np.int64)[0]
        gathered = self.sum(numbers)
        return int((gathered == gathered[self.rank]).sum())

    def all_true(self) -> Optional["AllTrue"]:
        """Return the Cell that tells whether a condition holds on all ranks; None with a single rank."""
        return AllTrue() if self.count > 1 else None

    def total(self) -> Optional[nn.Cell]:
        """Return the operator that adds a float32 Tensor up over the ranks; None with a single rank."""
        return ops.AllReduce() if self.count > 1 else None

    def averaging(self, parameters: Sequence[ms.Parameter]) -> Optional[Callable[[], ms.Tensor]]:
        """Return a function that sets float32 `parameters` to their means over the ranks, on the device.

        It can be compiled. All ranks get the same bits. With a single rank, or without parameters, return None.
        """
        total, count = self.total(), self.count
        if total is None or not parameters:
            return None
        parameters = ms.ParameterTuple(parameters)
        ends = np.cumsum([0] + [parameter.size for parameter in parameters]).tolist()

        def average():
            flat = [ops.reshape(parameter, (-1,)) for parameter in parameters]
            means = total(ops.concat(flat)) / count
            done: tuple[Any, ...] = ()
            for i in range(len(parameters)):
                mean = ops.reshape(means[ends[i] : ends[i + 1]], parameters[i].shape)
                done += (ops.assign(parameters[i], mean),)
            return ops.depend(means, done)

        return average

    def gradient_mean(self, parameters: ms.ParameterTuple) -> Optional[nn.Cell]:
        """Return the Cell that averages the gradients of the `parameters` over the ranks; None with a single rank."""
        return nn.DistributedGradReducer(parameters, mean=True, degree=self.count) if self.count > 1 else None

    def leave(self) -> None:
        """Wait for the other ranks and end the process; do nothing with a single rank.

        The ranks end together, because MindSpore ends the other ranks when one rank is gone.
        """
        if self.count > 1:
            self.sum(np.zeros(1, np.int64))
            script.end(0)

    def output(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which only the first rank prints."""
        return contextlib.nullcontext() if self.is_first else contextlib.redirect_stdout(open(os.devnull, "w"))


def join_ranks() -> Ranks:
    """Connect to the other processes that were started with this process, and return the `Ranks` of this process.

    `use_device` must set the device before. A process that was started alone is the only rank. If MindSpore cannot
    connect processes that `msrun` did not start, a `UserError` is raised.
    """
    started_by = launcher()
    if started_by is None:
        return Ranks()
    try:
        init()  # msrun runs this script also as its scheduler; in the scheduler, this call does not return
    except RuntimeError as error:
        if started_by == MSRUN:
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"{started_by}: MindSpore cannot connect the ranks: {reason}; {ADVICE}") from None
    ranks = Ranks(get_rank(), get_group_size())
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=ranks.count
    )
    return ranks


class AllTrue(nn.Cell):
    """Returns whether a condition, a bool scalar, holds on all ranks; all ranks get the same bool scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.total = ops.AllReduce()

    def construct(self, condition: ms.Tensor) -> ms.Tensor:
        failures = self.total(ops.cast(ops.logical_not(condition), ms.float32))
        return ops.less(failures, 1)


class SyncNorm(nn.Cell):
    """BatchNorm whose training statistics are computed over the batches of all ranks together.

    It takes the parameters of `norm`; `ranks` is the number of ranks. Input and output are (N, C, H, W), float32 or of
    2-byte numbers; the statistics are float32.
    """

    def __init__(self, norm: nn.BatchNorm2d, ranks: int) -> None:
        super().__init__()
        self.gamma, self.beta = norm.gamma, norm.beta
        self.moving_mean, self.moving_variance = norm.moving_mean, norm.moving_variance
        self.eps = norm.eps
        self.momentum = norm.momentum  # the Cell stores the weight of the new statistics
        self.ranks = ranks
        self.total = ops.AllReduce()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        dtype = x.dtype
        x = ops.cast(x, ms.float32)  # float16 has too few digits for sums
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
        return ops.cast((x - channelwise(mean)) * channelwise(scale) + channelwise(self.beta), dtype)


def channelwise(values: ms.Tensor) -> ms.Tensor:
    """Return the values (C) with shape (1, C, 1, 1)."""
    return ops.reshape(values, (1, -1, 1, 1))


def synchronise_norms(network: nn.Cell, ranks: int) -> None:
    """Replace every BatchNorm of the `network` by a `SyncNorm`; the parameters and their names stay the same."""
    replace_cells(network, nn.BatchNorm2d, lambda norm: SyncNorm(norm, ranks))


def replace_cells(network: nn.Cell, kinds: Any, make: Callable[[Any], nn.Cell]) -> None:
    """Replace every Cell of these `kinds` inside the `network` by the Cell that `make` returns for it.

    `kinds` is as in `isinstance`. The new Cell has the same parameters. Each keeps its name, whatever their order.
    """
    for cell in [cell for _, cell in network.cells_and_names()]:
        for name, child in list(cell.name_cells().items()):
            if isinstance(child, kinds):
                names = [(parameter, parameter.name) for parameter in child.get_parameters()]
                new = make(child)
                if isinstance(cell, (nn.SequentialCell, nn.CellList)):
                    cell[list(cell).index(child)] = new
                else:
                    setattr(cell, name, new)
                for parameter, old in names:
                    parameter.name = old
