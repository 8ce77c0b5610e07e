"""Recalibration: BatchNorm's moving statistics, computed again for the current weights."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from src.data.loading import Loader
from src.evaluation.evaluate import make_eval_step
from src.models.classifier import Classifier
from src.runtime.parallel import SyncNorm


class Recalibration:
    """Computes the moving statistics from a few batches of images (precise BatchNorm, arXiv 2105.07576, section 3).

    `loader` gives training images with the preprocessing of evaluation, without augmentation. Its first `batches`
    complete batches are used. Frozen BatchNorms keep their statistics. Create the `Recalibration` before `use_kernels`,
    which replaces the BatchNorms.
    """

    def __init__(self, classifier: Classifier, loader: Loader, batches: int, compiled: bool) -> None:
        self.classifier, self.loader, self.batches = classifier, loader, batches
        # Validation has another step, because this step is compiled with the classifier in training mode.
        self.step = make_eval_step(classifier, compiled)
        # Pairs of a moving statistic and the weight of a batch's statistic in it.
        self.shares: list[tuple[ms.Parameter, float]] = []
        for _, cell in classifier.cells_and_names():
            if isinstance(cell, (nn.BatchNorm2d, SyncNorm)) and cell.gamma.requires_grad:
                self.shares += [(cell.moving_mean, cell.momentum), (cell.moving_variance, cell.momentum)]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Set the moving statistics to the means of the batches' statistics within this context."""
        original = [statistic.asnumpy().copy() for statistic, _ in self.shares]
        self.classifier.set_train(True)
        totals: list[Any] = [0.0] * len(original)
        seen = 0
        for images, _ in self.loader.epoch():
            if seen == self.batches or len(images) < self.loader.batch_size:
                break
            # A batch adds its statistic times `share` to zero, so dividing by `share` gives the batch's statistic.
            fill(self.shares, [np.zeros_like(value) for value in original])
            self.step(ms.Tensor(images)).asnumpy()
            for i, (statistic, share) in enumerate(self.shares):
                totals[i] = totals[i] + statistic.asnumpy().astype(np.float64) / share
            seen += 1
        fill(self.shares, [(total / seen).astype(np.float32) for total in totals])
        self.classifier.set_train(False)
        try:
            yield
        finally:
            fill(self.shares, original)


def fill(shares: Sequence[tuple[ms.Parameter, float]], values: Sequence[np.ndarray]) -> None:
    """Set the moving statistics in `shares` to the `values`, in the same order."""
    for (statistic, _), value in zip(shares, values):
        statistic.set_data(ms.Tensor(value))
