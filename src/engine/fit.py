"""One epoch of training, measured, and the progress that the user watches meanwhile."""

import sys
import time
from dataclasses import dataclass

import mindspore as ms
from tqdm import tqdm

from src.errors import UserError


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


def train_epoch(classifier, step, loader, rates, epoch, progress, warm):
    """Train on one epoch's batches; return (mean loss, top-1, Clock).

    `rates` is the learning rate of each of the epoch's steps, float32; `warm` says that the step is compiled already. A
    loss that is not finite is a `UserError`.
    """
    classifier.set_train(True)
    clock = Clock()
    loss_sum, correct, images_seen = 0.0, 0, 0
    asked = time.perf_counter()
    for (images, labels), rate in zip(loader.epoch(epoch), rates):
        arrived = time.perf_counter()
        loss, logits = step(ms.Tensor(images), ms.Tensor(labels), ms.Tensor(rate))
        loss, logits = float(loss.asnumpy()), logits.asnumpy()
        if not abs(loss) < float("inf"):
            raise UserError(
                f"optimizer.lr: the loss became {loss} in epoch {epoch}, step {images_seen // len(images) + 1}; "
                "a smaller optimizer.lr or a longer schedule.warmup_epochs may help"
            )
        loss_sum += loss * len(images)
        correct += int((logits.argmax(1) == labels).sum())
        images_seen += len(images)
        done = time.perf_counter()
        if warm:
            clock.add(Clock(len(images), done - asked, arrived - asked))
        warm, asked = True, done
        progress.step(len(images), loss_sum / images_seen)
    return loss_sum / images_seen, correct / images_seen, clock


class Progress:
    """A bar over the whole training on a terminal's stderr, and on stdout one line an epoch."""

    def __init__(self, epochs, images_per_epoch):
        self.epochs = epochs
        self.bar = tqdm(
            total=epochs * images_per_epoch,
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
