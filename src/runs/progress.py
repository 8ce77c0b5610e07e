"""Where the time of an epoch goes, and the progress that the user watches meanwhile."""

import sys
import time
from dataclasses import dataclass

from tqdm import tqdm

LINE_SECONDS = 30  # between the lines of an epoch that takes long


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


class Progress:
    """What the user watches: a bar over the whole training on a terminal's stderr, and on stdout a line an epoch.

    Where stderr is no terminal, an epoch that takes long has a line of its own every LINE_SECONDS instead of the bar.
    `now` returns seconds, as time.monotonic does.
    """

    def __init__(self, epochs, steps_per_epoch, now=time.monotonic):
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.now = now
        self.epoch, self.in_epoch = 1, 0  # steps of the epoch that are done
        self.timed_from = None  # (seconds, steps done) after this process's first step, which compiles
        self.spoke = now()
        self.bar = tqdm(
            total=epochs * steps_per_epoch,
            bar_format="{percentage:3.0f}% |{bar}| {desc}",
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    @property
    def done(self):
        """Steps of the whole training that are done."""
        return (self.epoch - 1) * self.steps_per_epoch + self.in_epoch

    def start_epoch(self, epoch, step=0):
        """Begin an epoch, in a resumed run after `step` steps of it."""
        self.epoch, self.in_epoch = epoch, step
        self.bar.update(self.done - self.bar.n)
        self.bar.set_description_str(f"epoch {epoch}/{self.epochs}")

    def step(self, loss, rate, clock):
        """Count a step; `loss` is the epoch's mean so far, `rate` the learning rate, `clock` the epoch's `Clock`."""
        self.in_epoch += 1
        seconds = self.now()
        if self.timed_from is None:
            self.timed_from = seconds, self.done
        if not self.bar.disable:
            text = f"epoch {self.epoch}/{self.epochs}  {self.status(loss, rate, clock)}"
            self.bar.set_description_str(text, refresh=False)
            self.bar.update()
        elif seconds - self.spoke >= LINE_SECONDS:
            self.spoke = seconds
            where = f"step {self.in_epoch:,}/{self.steps_per_epoch:,} of epoch {self.epoch}/{self.epochs}"
            print(f"{where}  {self.status(loss, rate, clock)}", flush=True)

    def status(self, loss, rate, clock):
        """Return the text of one moment; speed and waiting are the epoch's, the time left counts evaluations too."""
        speed = ""
        if clock.seconds:
            speed = f"  {clock.images_per_second:.0f} images/s  {clock.data_wait_fraction:.1%} waiting"
        return f"loss {loss:.4f}  lr {rate:.3g}{speed}{self.time_left()}"

    def time_left(self):
        """Return `  ETA h:mm:ss`, or an empty string where nothing is left or not yet known."""
        left = self.epochs * self.steps_per_epoch - self.done
        began, steps_before = self.timed_from or (0, self.done)
        timed = self.done - steps_before
        if not (left and timed):
            return ""
        return f"  ETA {duration(left * (self.now() - began) / timed)}"

    def end_epoch(self, row):
        """Print the epoch's `row` of metrics.csv, of its evaluations that of the weights as shipped."""
        self.spoke = self.now()
        kind = "average" if "average_top1" in row else "test"
        with tqdm.external_write_mode(file=sys.stdout):
            print(
                f"epoch {row['epoch']:>3}/{self.epochs}  loss {row['train_loss']:.4f}  "
                f"{kind} loss {row[f'{kind}_loss']:.4f}  {kind} top-1 {row[f'{kind}_top1']:6.2%}  "
                f"{row['images_per_second']:.0f} images/s{self.time_left()}",
                flush=True,
            )

    def close(self):
        self.bar.close()


def duration(seconds):
    """Return seconds as m:ss, or as h:mm:ss from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
