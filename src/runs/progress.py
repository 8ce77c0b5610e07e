"""Measure the time of an epoch, and show the progress of the training."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
from tqdm import tqdm

LINE_SECONDS = 30  # least time between two lines of a long epoch


@dataclass
class Clock:
    """The time of an epoch, without the steps that compile."""

    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0  # part of `seconds` in which training waits for the next batch

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def data_wait_fraction(self) -> float:
        return self.waiting / self.seconds if self.seconds else 0.0

    def add(self, other: "Clock") -> None:
        self.images += other.images
        self.seconds += other.seconds
        self.waiting += other.waiting


class Progress:
    """Shows a bar of the whole training on stderr if it is a terminal, and prints a line per epoch on stdout.

    If stderr is not a terminal, a long epoch prints a line every LINE_SECONDS instead of the bar. `now` returns the
    time in seconds, as time.monotonic does.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, now: Callable[[], float] = time.monotonic) -> None:
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.now = now
        self.epoch = 1  # the current epoch
        self.epoch_steps = 0  # completed steps of the current epoch
        # (time, completed steps) after the first step of this process, which compiles.
        self.timed_from: Optional[tuple[float, int]] = None
        self.last_line = now()  # time of the last printed line
        self.bar = tqdm(
            total=epochs * steps_per_epoch,
            bar_format="{percentage:3.0f}% |{bar}| {desc}",
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    @property
    def done(self) -> int:
        """The number of completed steps of the whole training."""
        return (self.epoch - 1) * self.steps_per_epoch + self.epoch_steps

    def start_epoch(self, epoch: int, step: int = 0) -> None:
        """Start an epoch; in a resumed run, `step` steps of the epoch are already done."""
        self.epoch, self.epoch_steps = epoch, step
        self.bar.update(self.done - self.bar.n)
        self.bar.set_description_str(f"epoch {epoch}/{self.epochs}")

    def show(self, step: int, loss: float, rate: np.float32, clock: Clock) -> None:
        """Show the progress after this many steps of the epoch.

        `loss` is the mean loss of the epoch so far, `rate` is the learning rate, `clock` is the epoch's `Clock`.
        """
        self.epoch_steps = step
        seconds = self.now()
        if self.timed_from is None:
            self.timed_from = seconds, self.done
        if not self.bar.disable:
            text = f"epoch {self.epoch}/{self.epochs}  {self.status(loss, rate, clock)}"
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(self.done - self.bar.n)
        elif seconds - self.last_line >= LINE_SECONDS:
            self.last_line = seconds
            where = f"step {self.epoch_steps:,}/{self.steps_per_epoch:,} of epoch {self.epoch}/{self.epochs}"
            print(f"{where}  {self.status(loss, rate, clock)}", flush=True)

    def status(self, loss: float, rate: np.float32, clock: Clock) -> str:
        """Return loss, learning rate, speed, share of waiting, and time left, as text.

        Speed and waiting are averages over the epoch. The time left includes evaluations.
        """
        speed = ""
        if clock.seconds:
            speed = f"  {clock.images_per_second:.0f} images/s  {clock.data_wait_fraction:.1%} waiting"
        return f"loss {loss:.4f}  lr {rate:.3g}{speed}{self.time_left()}"

    def time_left(self) -> str:
        """Return `  ETA h:mm:ss`, or "" if no step is left or the time is not known yet."""
        left = self.epochs * self.steps_per_epoch - self.done
        began, steps_before = self.timed_from or (0.0, self.done)
        timed = self.done - steps_before
        if not (left and timed):
            return ""
        return f"  ETA {duration(left * (self.now() - began) / timed)}"

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        """Print the line of an epoch from its `row` of metrics.csv.

        With a moving average of the weights, the line shows the metrics of the averaged weights.
        """
        self.last_line = self.now()
        kind = "average" if "average_top1" in row else "test"
        with tqdm.external_write_mode(file=sys.stdout):
            print(
                f"epoch {row['epoch']:>3}/{self.epochs}  loss {row['train_loss']:.4f}  "
                f"{kind} loss {row[f'{kind}_loss']:.4f}  {kind} top-1 {row[f'{kind}_top1']:6.2%}  "
                f"{row['images_per_second']:.0f} images/s{self.time_left()}",
                flush=True,
            )

    def close(self) -> None:
        self.bar.close()


def duration(seconds: float) -> str:
    """Return seconds as m:ss, or as h:mm:ss if it is an hour or more."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
