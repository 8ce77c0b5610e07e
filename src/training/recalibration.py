"""Recalibration: BatchNorm's moving statistics, computed again for the current weights."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any, Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from src.data.loading import Loader
from src.evaluation.evaluate import Step, make_eval_step
from src.models.classifier import Classifier
from src.runtime.parallel import Ranks, SyncNorm
from src.runtime.setter import Setter

# Images from which `auto` computes the statistics. On the quickstart, 1,024 images change the test loss by 0.002 only.
IMAGES = 512
WINDOW = 0.1  # largest part of an epoch over which the moving statistics may average without recalibration


class Recalibration:
    """Computes the moving statistics from a few batches of images (precise BatchNorm, arXiv 2105.07576, section 3).

    `loader` gives shuffled training images with the preprocessing of evaluation, without augmentation, and the same
    number of batches on all `ranks`. Its first `batches` batches are used; with fewer, all of them. Frozen BatchNorms
    keep their statistics. Create the `Recalibration` before `use_kernels`, which replaces the BatchNorms.
    """

    def __init__(self, classifier: Classifier, loader: Loader, batches: int, compiled: bool, ranks: Ranks) -> None:
        self.classifier, self.loader, self.batches, self.ranks = classifier, loader, batches, ranks
        # Validation has another step, because this step is compiled with the classifier in training mode.
        self.step = make_eval_step(classifier, compiled)
        # Pairs of a moving statistic and the weight of a batch's statistic in it.
        self.shares: list[tuple[ms.Parameter, float]] = []
        for norm in trained_norms(classifier):
            self.shares += [(norm.moving_mean, norm.momentum), (norm.moving_variance, norm.momentum)]
        self.set_statistics = Setter(statistic for statistic, _ in self.shares)

    @contextlib.contextmanager
    def in_place(self, poll: Callable[[], None]) -> Iterator[None]:
        """Set the moving statistics to the means of the batches' statistics within this context.

        `poll` is called before each batch. If it raises, the statistics become what they were.
        """
        original = [statistic.asnumpy().copy() for statistic, _ in self.shares]
        try:
            self.set_statistics(self.ranks.mean(self.compute(polled(self.step, poll))))
            yield
        finally:
            self.set_statistics(original)

    def compute(self, step: Step) -> list[np.ndarray]:
        """Return the means of the statistics of this rank's batches, float32, in the order of `shares`.

        The moving statistics are changed on the way.
        """
        totals: list[Any] = [0.0] * len(self.shares)
        seen = 0
        self.classifier.set_train(True)
        try:
            for images, _ in itertools.islice(self.loader.epoch(), self.batches):
                # A batch adds its statistic times `share` to zero, so dividing by `share` gives the batch's statistic.
                self.set_statistics([np.zeros(statistic.shape, np.float32) for statistic, _ in self.shares])
                step(ms.Tensor.from_numpy(images)).asnumpy()
                for i, (statistic, share) in enumerate(self.shares):
                    totals[i] = totals[i] + statistic.asnumpy().astype(np.float64) / share
                seen += 1
        finally:
            self.classifier.set_train(False)
        return [(total / seen).astype(np.float32) for total in totals]


def batches_of_auto(classifier: Classifier, batches: int, batch_size: int) -> int:
    """Return the batches per rank of `train.recalibrate: auto`, for epochs of this many `batches`; 0 means off.

    With momentum m, the moving statistics average over about the last 1 / (1 - m) batches. If these are more than a
    tenth of an epoch (WINDOW), the weights have changed much meanwhile, so IMAGES images recompute the statistics.
    In very short epochs, the statistics also keep a large share of their initial values: m ** batches.
    """
    windows = [1 / norm.momentum for norm in trained_norms(classifier)]  # the Cell stores 1 - m as `momentum`
    if not windows or max(windows) <= WINDOW * batches:
        return 0
    return min(batches, math.ceil(IMAGES / batch_size))


def trained_norms(classifier: Classifier) -> list[Any]:
    """Return the BatchNorms that are not frozen."""
    cells = [cell for _, cell in classifier.cells_and_names() if isinstance(cell, (nn.BatchNorm2d, SyncNorm))]
    return [cell for cell in cells if cell.gamma.requires_grad]


def moving_statistics(classifier: Classifier) -> list[ms.Parameter]:
    """Return the moving statistics that training changes; native kernels may have taken the places of BatchNorms."""
    parameters = classifier.parameters_dict()
    names = [name for name in parameters if name.endswith((".moving_mean", ".moving_variance"))]
    return [parameters[name] for name in names if parameters[f"{name.rpartition('.')[0]}.gamma"].requires_grad]


def polled(step: Step, poll: Callable[[], None]) -> Step:
    """Return a step that first calls `poll`, which may raise an exception."""

    def polling(images: ms.Tensor) -> ms.Tensor:
        poll()
        return step(images)

    return polling
