"""One epoch of training, measured, and the progress that the user watches meanwhile."""

import itertools
import math
import sys
import time
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from tqdm import tqdm

from src.errors import UserError


class DivergedError(UserError):
    """The loss of a batch is not finite."""


@dataclass
class Clock:
    """Where an epoch's time goes; the first step of a run, which compiles, is left out."""

    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0  # of `seconds`, spent on the next batch

    @property
    def images_per_second(self):
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def data_wait_fraction(self):
        return self.waiting / self.seconds if self.seconds else 0.0

    def add(self, other):
        self.images += other.images
        self.seconds += other.seconds
        self.waiting += other.waiting


def train_epoch(training, step, loader, rates, progress):
    """Train on what is left of the epoch under way and return its `Clock`; the `Training` is kept up to date.

    `rates` is the learning rate of each of the epoch's updates, float32. A loss that is not finite is a `DivergedError`.
    """
    state, ranks, average, interrupts = training.state, training.ranks, training.average, training.interrupts
    training.classifier.set_train(True)
    clock = Clock()
    batches = len(rates) * step.every
    asked = time.perf_counter()
    for images, labels in itertools.islice(loader.epoch(state.epoch + 1, state.batch), batches - state.batch):
        arrived = time.perf_counter()
        interrupts.hold()
        rate = rates[state.batch // step.every]
        warm = images.shape in step.shapes  # or it is compiled first
        loss, logits = step(
            ms.Tensor(images), ms.Tensor(labels), ms.Tensor(rate), number=state.epoch * batches + state.batch
        )
        loss = float(loss.asnumpy())
        own = np.array([loss * len(images), (logits.asnumpy().argmax(1) == labels).sum(), len(images)], np.float64)
        loss_sum, correct, count = ranks.sum(own)
        if not math.isfinite(loss_sum):
            raise DivergedError(
                f"the loss became {loss_sum} in epoch {state.epoch + 1}, step {state.batch + 1}, "
                f"at learning rate {rate:.4g}; a smaller optimizer.lr or a longer schedule.warmup_epochs may help"
            )
        state.batch += 1
        state.loss_sum += loss_sum
        state.correct += int(correct)
        state.images += int(count)
        done = time.perf_counter()
        state.epoch_seconds += done - asked
        if warm:
            clock.add(Clock(int(count), done - asked, arrived - asked))
        if state.batch % step.every == 0:
            state.updates += 1
            if average is not None:
                average.update(state.updates)
            if state.batch < batches:
                training.save_if_due()
            interrupts.release()
        asked = done
        progress.step(state.loss_sum / state.images, rate, clock)
    return clock


class Progress:
    """A bar over the whole training on a terminal's stderr, and on stdout one line an epoch."""

    def __init__(self, epochs, images_per_epoch, images_done=0):
        self.epochs = epochs
        self.bar = tqdm(
            total=epochs * images_per_epoch,
            initial=images_done,
            unit=" images",
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def start_epoch(self, epoch):
        self.bar.set_description(f"epoch {epoch}/{self.epochs}")

    def step(self, images, loss):
        self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self.bar.update(images)

    def end_epoch(self, row):
        """Print the epoch's `row` of metrics.csv."""
        with tqdm.external_write_mode(file=sys.stdout):
            print(
                f"epoch {row['epoch']:>3}/{self.epochs}  loss {row['train_loss']:.4f}  test loss {row['test_loss']:.4f}"
                f"  test top-1 {row['test_top1']:6.2%}  {row['images_per_second']:.0f} images/s",
                flush=True,
            )

    def close(self):
        self.bar.close()
