"""What share of the training's time its logging takes: progress bar, metrics.csv, TensorBoard's events, curves.

python benchmarks/logging_overhead.py --json overhead.json

The quickstart's network trains with logging at every other step; what belongs to an epoch or to the run is timed by
itself and counted as often as a whole quickstart run does it. The bar is drawn on a pseudo-terminal. Processor time is
that of the thread which logs: where other programs keep the machine busy, it says more than the clock.
"""

import contextlib
import os
import pty
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from src.config.load import load_config
from src.data.datasets import load_samples
from src.data.loading import train_loader
from src.errors import ArgumentParser, UserError, run
from src.files import write_json
from src.kernels.convert import use_kernels
from src.models import create_model
from src.runs.folder import CURVES_SECONDS, RunFolder
from src.runs.progress import Progress
from src.runtime.device import use_device
from src.runtime.parallel import Ranks
from src.training.interrupts import Interrupts
from src.training.optimizer import create_optimizer
from src.training.schedule import learning_rates
from src.training.step import TrainStep
from src.training.trainer import Trainer
from src.versions import versions

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
AT_THE_END = "curves and confusion, at the end"
TARGET = 0.01  # of the steps' time, at most


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4, help="epochs to train, each of 44 steps (default: 4)")
    parser.add_argument("--json", metavar="PATH", help="write the figures there")
    args = parser.parse_args()
    if args.epochs < 1:
        raise UserError(f"--epochs {args.epochs}: must be at least 1")

    config = load_config(CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(config, args.epochs, RunFolder(Path(folder) / "run"))
    print(
        f"MindSpore {figures['mindspore']}, {figures['steps']} steps: {figures['step_ms']:.1f} ms without progress "
        f"(middle half {figures['step_ms_low']:.1f} to {figures['step_ms_high']:.1f}), "
        f"{figures['logged_step_ms']:.1f} ms with it (medians)"
    )
    print(f"a whole run: {figures['run_steps']} steps, {figures['run_seconds']:.0f} s")
    for name, part in figures["parts"].items():
        print(
            f"  {name:<33}{part['ms']:>9.2f} ms each (of the processor {part['cpu_ms']:.2f})"
            f"{part['count']:>7} times{part['share']:>9.3%}"
        )
    print(
        f"logging while training {figures['share']:.2%} of the steps' time, the target is below {TARGET:.0%}; "
        f"with the run's end {figures['share_with_end']:.2%}, in processor time {figures['cpu_share_with_end']:.2%}"
    )
    if args.json:
        write_json(figures, args.json)


class EveryOther:
    """Progress that is shown at every other step; `steps` collects the seconds of steps with and without it."""

    def __init__(self, progress):
        self.progress = progress
        self.shown = True
        self.steps = {True: [], False: []}
        self.calls = []  # what the progress itself took, as `cost_of` says it
        self.left = None

    def start_epoch(self, epoch):
        self.progress.start_epoch(epoch)
        self.left = None

    def step(self, *values):
        shown = self.shown
        cost = cost_of(self.progress.step, *values) if shown else None
        leaving = time.perf_counter()
        if self.left is not None:
            self.steps[shown].append(leaving - self.left)
            self.calls += [cost] if shown else []
        self.left, self.shown = leaving, not self.shown


def measure(config, epochs, folder):
    """Return the benchmark's figures after so many epochs; `folder` is a `RunFolder`."""
    use_device(config.runtime, config.train.seed)
    samples = load_samples(config.data, "train")
    loader = train_loader(config, samples)
    classifier = create_model(config.model, config.data, len(samples.classes))
    use_kernels(classifier, config.runtime)
    rates = learning_rates(config, len(loader)).reshape(config.train.epochs, -1)
    step = TrainStep(classifier, create_optimizer(config, classifier), config)
    trainer = Trainer(config, folder, Ranks(), Interrupts(), samples.classes, classifier, step)
    folder.start(config)
    folder.open_events(0)
    # As many cells to draw as there are when each class is taken for another one now and then.
    confusion = np.eye(len(samples.classes), dtype=np.int64)
    confusion += np.roll(confusion, 1, axis=1) + np.roll(confusion, 3, axis=1)

    records, lines = [], []
    with terminal():
        progress = EveryOther(Progress(config.train.epochs, len(loader)))
        for epoch in range(1, epochs + 1):
            progress.start_epoch(epoch)
            clock = trainer.train_epoch(loader, rates[epoch - 1], progress)
            state, row = trainer.state, row_of(epoch, clock)
            state.epoch, state.best = epoch, {"epoch": epoch, "top1": 0.5, "top5": 1.0, "loss": 1.0}
            state.rows.append(row)
            state.begin_epoch()
            folder.drawn = time.monotonic()  # drawing is timed below
            records.append(cost_of(folder.log_epoch, state, rates[epoch - 1], confusion))
            lines.append(cost_of(progress.progress.end_epoch, row))
        progress.progress.close()
    # As many rows as at the end of a whole run.
    state.rows = [row_of(epoch, clock) for epoch in range(1, config.train.epochs + 1)]
    drawings = [cost_of(folder.draw_curves, state) for _ in range(3)]
    endings = [cost_of(folder.finish, state, {}, samples.classes)]

    low, median, high = statistics.quantiles(progress.steps[False], n=4)
    run_steps = rates.size
    run_seconds = run_steps * median
    counts = {
        "progress, a step": (progress.calls, run_steps),
        "metrics.csv and events, an epoch": (records, len(rates)),
        "progress, an epoch": (lines, len(rates)),
        "curves, meanwhile": (drawings, int(run_seconds // CURVES_SECONDS)),
        AT_THE_END: (endings, 1),
    }
    parts = {}
    for name, (costs, count) in counts.items():
        seconds, busy = (statistics.mean(values) for values in zip(*costs))
        parts[name] = {
            "ms": seconds * 1e3,
            "cpu_ms": busy * 1e3,
            "count": count,
            "share": seconds * count / run_seconds,
        }
    share = sum(part["share"] for part in parts.values())
    return {
        "mindspore": versions()["mindspore"],
        "steps": len(progress.steps[True]) + len(progress.steps[False]),
        "step_ms": median * 1e3,
        "step_ms_low": low * 1e3,
        "step_ms_high": high * 1e3,
        "logged_step_ms": statistics.median(progress.steps[True]) * 1e3,
        "run_steps": run_steps,
        "run_seconds": run_seconds,
        "parts": parts,
        "share": share - parts[AT_THE_END]["share"],
        "share_with_end": share,
        "cpu_share_with_end": sum(part["cpu_ms"] * part["count"] for part in parts.values()) / 1e3 / run_seconds,
    }


def row_of(epoch, clock):
    """Return a row of metrics.csv."""
    return {
        "epoch": epoch,
        "lr": 0.05,
        **dict.fromkeys(("train_loss", "train_top1", "test_loss", "test_top1", "test_top5"), 1 / epoch),
        "images_per_second": clock.images_per_second,
        "data_wait_fraction": clock.data_wait_fraction,
        "seconds": clock.seconds,
    }


def cost_of(function, *arguments):
    """Call the function and return the seconds that it took and those of its thread's processor time."""
    began, busy = time.perf_counter(), time.thread_time()
    function(*arguments)
    return time.perf_counter() - began, time.thread_time() - busy


@contextlib.contextmanager
def terminal():
    """Let stdout and stderr be a terminal whose content is thrown away."""
    screen, own = pty.openpty()
    threading.Thread(target=drain, args=(screen,), daemon=True).start()
    with open(own, "w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield


def drain(screen):
    # Reading fails once the other end is closed.
    with contextlib.suppress(OSError):
        while os.read(screen, 4096):
            pass


if __name__ == "__main__":
    run(main)
