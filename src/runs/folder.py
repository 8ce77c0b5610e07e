"""The run folder: config, metrics, curves, checkpoints, TensorBoard's events and the summary of one run."""

import csv
import fcntl
import io
import time
from dataclasses import asdict
from pathlib import Path

from src.errors import UserError
from src.figures import plot_curves
from src.files import PARTIAL, link, replacing, write_json, write_text
from src.runs.tensorboard import Events, remove_events
from src.weights.checkpoint import load_checkpoint, save_checkpoint

CURVES_SECONDS = 120  # between two drawings, each of which takes about half a second
CONFIG, CHECKPOINTS, EVENTS = "config.yaml", "checkpoints", "events"
FILES = (CONFIG, "metrics.csv", "curves.png", "best.ckpt", "last.ckpt", "summary.json", CHECKPOINTS, EVENTS)
COLUMNS = {  # of metrics.csv; accuracies are fractions of 1; those of the moving average only where one is kept
    "epoch": "d",
    "lr": ".6g",
    "train_loss": ".5f",
    "train_top1": ".5f",
    "test_loss": ".5f",
    "test_top1": ".5f",
    "test_top5": ".5f",
    "average_loss": ".5f",
    "average_top1": ".5f",
    "average_top5": ".5f",
    "images_per_second": ".1f",
    "data_wait_fraction": ".4f",
    "seconds": ".2f",
}


class RunFolder:
    """Writes the record of one run; only one process at a time does."""

    def __init__(self, path):
        self.path = Path(path)
        self.lock = None
        self.events = None
        self.best_confusion = None  # and the updates done by then; what was best before a resumption is not known
        self.drawn = time.monotonic()

    def holds_run(self):
        """Return the name of a file of a run that is there, or None."""
        return next((name for name in FILES if (self.path / name).exists()), None)

    def start(self, config):
        """Make the folder, clear an earlier run's files and write the resolved config."""
        self.open()
        for name in FILES:
            if name not in (CHECKPOINTS, EVENTS):
                (self.path / name).unlink(missing_ok=True)
        remove_events(self.path / EVENTS)
        for file in (self.path / CHECKPOINTS).glob("*.ckpt"):
            file.unlink()
        write_text(config.to_yaml(), self.path / CONFIG)

    def open(self):
        """Make the folder where there is none, keep other processes from training in it, and clear what a kill left."""
        (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        self.lock = open(self.path / CHECKPOINTS / ".lock", "w")  # noqa: SIM115 - held as long as the process lives
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"run.dir: {self.path} is being trained in by another process") from None
        for folder in (self.path, self.path / CHECKPOINTS):
            for left_behind in folder.glob(f".*{PARTIAL}*"):
                left_behind.unlink()

    def states(self):
        """Return the paths of the states that can be resumed from, the newest first."""
        return sorted((self.path / CHECKPOINTS).glob("state-*.ckpt"), reverse=True)

    def newest_state(self, usable=lambda checkpoint: True):
        """Return the `Checkpoint` of the newest `usable` state, or None; a damaged state is reported and skipped."""
        for path in self.states():
            try:
                checkpoint = load_checkpoint(path)
            except UserError as problem:
                print(f"skipped: {problem}", flush=True)
                continue
            if checkpoint.state is not None and usable(checkpoint):
                return checkpoint
        return None

    def save_state(self, state, keep, **content):
        """Write all that resuming needs, and remove all but the last `keep` states.

        `content` is as for `save_checkpoint`.
        """
        path = self.path / CHECKPOINTS / f"state-{state.epoch:05}-{state.batch:07}.ckpt"
        save_checkpoint(path, epoch=state.epoch, best=state.best, state=asdict(state), **content)
        link(path, self.path / "last.ckpt")
        for old in self.states()[keep:]:
            old.unlink()

    def save_best(self, state, result, **content):
        """Write the weights of the epoch that gave `result` if they are in the ranking; remove those that left it."""
        if result in state.ranking:
            save_checkpoint(self.weights_path(result), epoch=result["epoch"], best=state.best, **content)
        if result is state.best:
            link(self.weights_path(result), self.path / "best.ckpt")
        kept = {self.weights_path(row) for row in state.ranking}
        for old in (self.path / CHECKPOINTS).glob("epoch-*.ckpt"):
            if old not in kept:
                old.unlink()

    def weights_path(self, row):
        return self.path / CHECKPOINTS / f"epoch-{row['epoch']:05}.ckpt"

    def open_events(self, updates):
        """Begin TensorBoard's record after so many updates of the weights."""
        self.events = Events(self.path / EVENTS, updates)

    def log_epoch(self, state, rates, confusion):
        """Write metrics.csv anew and the last epoch's events; redraw the curves now and then.

        `rates` are the epoch's learning rates, `confusion` counts its test images by class.
        """
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        names = [name for name in COLUMNS if name in state.rows[0]]
        writer.writerow(names)
        writer.writerows([format(row[name], COLUMNS[name]) for name in names] for row in state.rows)
        write_text(table.getvalue(), self.path / "metrics.csv")
        if self.events:
            self.events.log_epoch(state.rows[-1], rates)
            if state.best["epoch"] == state.epoch:
                self.best_confusion = confusion, self.events.done
        if time.monotonic() - self.drawn >= CURVES_SECONDS:
            self.draw_curves(state)

    def draw_curves(self, state):
        with replacing(self.path / "curves.png", suffix=".png") as partial:
            plot_curves(state.rows, state.best, partial)
        self.drawn = time.monotonic()

    def finish(self, state, summary, classes):
        """Draw the curves, end the events with the best epoch's confusion matrix, and write summary.json."""
        self.draw_curves(state)
        if self.events:
            if self.best_confusion:
                confusion, update = self.best_confusion
                self.events.log_confusion(confusion, classes, update)
            self.events.close()
        write_json(summary, self.path / "summary.json")
