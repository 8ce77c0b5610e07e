"""Measure the share of the training time that logging takes: progress bar, metrics.csv, TensorBoard events, curves.

python benchmarks/logging_overhead.py --json overhead.json

The quickstart's network trains, and every other step is logged. A real run logs about once a second. Logging per epoch
and per run is timed separately. All of it is counted as often as it happens in a whole quickstart run. The progress bar
is drawn on a pseudo-terminal. CPU time is measured in the logging thread. It is more reliable than wall time when other
programs keep the machine busy.
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

from src.arguments import whole
from src.config.load import load_config
from src.data.datasets import load_samples
from src.data.loading import train_loader
from src.errors import ArgumentParser, run
from src.files import write_json
from src.kernels.convert import use_kernels
from src.models import create_model
from src.outputs import add_overwrite, check_outputs, output_files
from src.runs.folder import CURVES_SECONDS, RunFolder
from src.runs.progress import Progress
from src.runtime.device import use_device
from src.runtime.parallel import Ranks
from src.training.interrupts import Interrupts
from src.training.optimizer import create_optimizer
from src.training.schedule import learning_rates
from src.training.step import TrainStep
from src.training.trainer import Trainer
from src.training.window import SECONDS
from src.versions import versions

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
AT_THE_END = "curves and confusion, at the end"
TARGET = 0.01  # largest share of the steps' time


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=whole(1, 10_000), default=4, help="epochs of 44 steps to train (default: 4)")
    parser.add_argument("--json", metavar="PATH", help="also write the figures to this file")
    add_overwrite(parser)
    args = parser.parse_args()
    check_outputs(output_files("--json", args.json, ".json"), {}, args.overwrite)

    config = load_config(CONFIG, ["log.every_steps=1"])
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(config, args.epochs, RunFolder(Path(folder) / "run"))
    print(
        f"MindSpore {figures['mindspore']}, {figures['steps']} steps: {figures['step_ms']:.1f} ms without progress bar "
        f"(middle half {figures['step_ms_low']:.1f} to {figures['step_ms_high']:.1f}), "
        f"{figures['logged_step_ms']:.1f} ms with it (medians)"
    )
    print(f"a whole run: {figures['run_steps']} steps, {figures['run_seconds']:.0f} s")
    for name, part in figures["parts"].items():
        print(
            f"  {name:<33}{part['ms']:>9.2f} ms each (CPU {part['cpu_ms']:.2f} ms)"
            f"{part['count']:>7} times{part['share']:>9.3%}"
        )
    print(
        f"logging during training: {figures['share']:.2%} of the steps' time (target: below {TARGET:.0%}); "
        f"with the end of the run: {figures['share_with_end']:.2%}, in CPU time {figures['cpu_share_with_end']:.2%}"
    )
    if args.json is not None:
        write_json(figures, args.json)


class EveryOther:
    """A progress bar that is drawn at every other step.

    `steps` collects the seconds of steps with and without drawing, `calls` the result of `cost_of` for each drawing.
    """

    def __init__(self, progress):
        self.progress = progress
        self.shown = True
        self.steps = {True: [], False: []}
        self.calls = []
        self.last_end = None  # time at which the last step was over; None in the first step of an epoch

    def start_epoch(self, epoch):
        self.progress.start_epoch(epoch)
        self.last_end = None

    def show(self, *values):
        shown = self.shown
        cost = cost_of(self.progress.show, *values) if shown else None
        end = time.perf_counter()
        if self.last_end is not None:
            self.steps[shown].append(end - self.last_end)
            self.calls += [cost] if shown else []
        self.last_end, self.shown = end, not self.shown


def measure(config, epochs, folder):
    """Return the benchmark's figures after training for `epochs`; `folder` is a `RunFolder`."""
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
    # A realistic number of cells to draw: each class is confused with two others.
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
            folder.drawn = time.monotonic()  # keeps log_epoch from drawing, which is timed below
            records.append(cost_of(folder.log_epoch, state, rates[epoch - 1], confusion))
            lines.append(cost_of(progress.progress.end_epoch, row))
        progress.progress.close()
    # The curves at the end of a whole run have this many epochs.
    state.rows = [row_of(epoch, clock) for epoch in range(1, config.train.epochs + 1)]
    drawings = [cost_of(folder.draw_curves, state) for _ in range(3)]
    endings = [cost_of(folder.finish, state, {}, samples.classes)]

    low, median, high = statistics.quantiles(progress.steps[False], n=4)
    run_steps = rates.size
    run_seconds = run_steps * median
    counts = {
        "progress, a second": (progress.calls, int(run_seconds // SECONDS)),
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
    """Return a row of metrics.csv with made-up metrics."""
    return {
        "epoch": epoch,
        "lr": 0.05,
        **dict.fromkeys(("train_loss", "train_top1", "test_loss", "test_top1", "test_top5"), 1 / epoch),
        "images_per_second": clock.images_per_second,
        "data_wait_fraction": clock.data_wait_fraction,
        "seconds": clock.seconds,
    }


def cost_of(function, *arguments):
    """Call the function; return its wall seconds and its thread's CPU seconds."""
    began, busy = time.perf_counter(), time.thread_time()
    function(*arguments)
    return time.perf_counter() - began, time.thread_time() - busy


@contextlib.contextmanager
def terminal():
    """Redirect stdout and stderr to a pseudo-terminal whose content is thrown away."""
    screen, descriptor = pty.openpty()
    threading.Thread(target=drain, args=(screen,), daemon=True).start()
    with open(descriptor, "w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield


def drain(screen):
    # Reading fails when the other end is closed.
    with contextlib.suppress(OSError):
        while os.read(screen, 4096):
            pass


if __name__ == "__main__":
    run(main)
