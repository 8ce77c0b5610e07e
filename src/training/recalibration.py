"""BatchNorm's moving statistics, computed anew for given weights."""

import contextlib

import mindspore as ms
import numpy as np
from mindspore import nn

from src.evaluation.evaluate import make_eval_step
from src.runtime.parallel import SyncNorm


class Recalibration:
    """Takes the moving statistics from images instead of from the course of training (precise BatchNorm).

    arXiv 2105.07576, section 3. `loader` shows training images as evaluation sees them; its first so many whole
    `batches` are used. To be made before the native kernels are put into the classifier; frozen BatchNorms keep what
    they have.
    """

    def __init__(self, classifier, loader, batches, compiled):
        self.classifier, self.loader, self.batches = classifier, loader, batches
        self.step = make_eval_step(classifier, compiled)  # of its own: compiled with the classifier in training mode
        self.shares = []  # (moving statistic, the share of a batch's own statistic in it)
        for _, cell in classifier.cells_and_names():
            if isinstance(cell, (nn.BatchNorm2d, SyncNorm)) and cell.gamma.requires_grad:
                self.shares += [(cell.moving_mean, cell.momentum), (cell.moving_variance, cell.momentum)]

    @contextlib.contextmanager
    def in_place(self):
        """Within this context the moving statistics are the means of the batches' statistics."""
        own = [statistic.asnumpy().copy() for statistic, _ in self.shares]
        self.classifier.set_train(True)
        totals, seen = [0.0] * len(own), 0
        for images, _ in self.loader.epoch():
            if seen == self.batches or len(images) < self.loader.batch_size:
                break
            # From zero, a batch leaves its share of its own statistics.
            fill(self.shares, [np.zeros_like(value) for value in own])
            self.step(ms.Tensor(images)).asnumpy()
            for i, (statistic, share) in enumerate(self.shares):
                totals[i] = totals[i] + statistic.asnumpy().astype(np.float64) / share
            seen += 1
        fill(self.shares, [(total / seen).astype(np.float32) for total in totals])
        self.classifier.set_train(False)
        try:
            yield
        finally:
            fill(self.shares, own)


def fill(shares, values):
    for (statistic, _), value in zip(shares, values):
        statistic.set_data(ms.Tensor(value))
