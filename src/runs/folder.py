"""The run folder: config, metrics, curves, checkpoints, TensorBoard events and summary of one run."""

import csv
import fcntl
import io
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Optional, TextIO, Union, cast

import numpy as np

from src.config.schema import Config
from src.errors import UserError
from src.figures import plot_curves
from src.files import PARTIAL, link, replacing, write_json, write_text
from src.runs.state import RunState
from src.runs.tensorboard import Events, remove_events
from src.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

CURVES_SECONDS = 120  # least time between two drawings of the curves; a drawing takes about half a second
CONFIG, CHECKPOINTS, EVENTS = "config.yaml", "checkpoints", "events"
FILES = (CONFIG, "metrics.csv", "curves.png", "best.ckpt", "last.ckpt", "summary.json", CHECKPOINTS, EVENTS)
# The columns of metrics.csv and their formats. Accuracies are fractions of 1. The columns average_… are present only if
# the run keeps a moving average of the weights.
COLUMNS = {
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
    """Writes the record of one run; a lock keeps other processes from writing to the same folder."""

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)
        self.lock: Optional[TextIO] = None
        self.events: Optional[Events] = None
        # The confusion matrix of the best epoch and its number of updates. A resumed run does not know the matrix of an
        # earlier epoch.
        self.best_confusion: Optional[tuple[np.ndarray, int]] = None
        self.drawn = time.monotonic()  # time of the last drawing of the curves

    def holds_run(self) -> Optional[str]:
        """Return the name of a file in the folder that belongs to a run, or None."""
        return next((name for name in FILES if (self.path / name).exists()), None)

    def start(self, config: Config) -> None:
        """Create the folder, remove the files of an earlier run, and write the resolved config."""
        self.open()
        for name in FILES:
            if name not in (CHECKPOINTS, EVENTS):
                (self.path / name).unlink(missing_ok=True)
        remove_events(self.path / EVENTS)
        for file in (self.path / CHECKPOINTS).glob("*.ckpt"):
            file.unlink()
        write_text(config.to_yaml(), self.path / CONFIG)

    def open(self) -> None:
        """Create the folder if it is missing, lock it, and remove the temporary files of killed processes."""
        (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        self.lock = open(self.path / CHECKPOINTS / ".lock", "w")  # noqa: SIM115 - open until the process ends
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"run.dir: another process trains in {self.path}; choose another run.dir=…") from None
        for folder in (self.path, self.path / CHECKPOINTS):
            for remainder in folder.glob(f".*{PARTIAL}*"):
                remainder.unlink()

    def states(self) -> list[Path]:
        """Return the paths of the states from which the run can be resumed, newest first."""
        return sorted((self.path / CHECKPOINTS).glob("state-*.ckpt"), reverse=True)

    def newest_state(self, usable: Callable[[Checkpoint], bool] = lambda checkpoint: True) -> Optional[Checkpoint]:
        """Return the `Checkpoint` of the newest state that is `usable`, or None; report and skip damaged states."""
        for path in self.states():
            try:
                checkpoint = load_checkpoint(path)
            except UserError as problem:
                print(f"skipped: {problem}", flush=True)
                continue
            if checkpoint.state is not None and usable(checkpoint):
                return checkpoint
        return None

    def save_state(self, state: RunState, keep: int, **content: Any) -> None:
        """Write everything that resuming needs, and remove all states except the last `keep`.

        `content` are the other arguments of `save_checkpoint`.
        """
        path = self.path / CHECKPOINTS / f"state-{state.epoch:05}-{state.batch:07}.ckpt"
        save_checkpoint(path, epoch=state.epoch, best=state.best, state=asdict(state), **content)
        link(path, self.path / "last.ckpt")
        for old in self.states()[keep:]:
            old.unlink()

    def save_best(self, state: RunState, result: dict[str, Any], **content: Any) -> None:
        """Write the weights of an epoch if its `result` is in the ranking; remove weights that are no longer in it.

        `content` are the other arguments of `save_checkpoint`.
        """
        if result in state.ranking:
            save_checkpoint(self.weights_path(result), epoch=result["epoch"], best=state.best, **content)
        if result is state.best:
            link(self.weights_path(result), self.path / "best.ckpt")
        kept = {self.weights_path(row) for row in state.ranking}
        for old in (self.path / CHECKPOINTS).glob("epoch-*.ckpt"):
            if old not in kept:
                old.unlink()

    def weights_path(self, row: dict[str, Any]) -> Path:
        """Return the path of the weights of an epoch; `row` is its result in the ranking."""
        return self.path / CHECKPOINTS / f"epoch-{row['epoch']:05}.ckpt"

    def open_events(self, updates: int) -> None:
        """Start a new file of TensorBoard events; `updates` is the number of updates of the weights so far."""
        self.events = Events(self.path / EVENTS, updates)

    def log_epoch(self, state: RunState, rates: np.ndarray, confusion: np.ndarray) -> None:
        """Write metrics.csv and the events of the last epoch; redraw the curves if CURVES_SECONDS have passed.

        `rates` are the learning rates of the epoch's updates, float32. `confusion` is the confusion matrix of the test
        images, int64 (classes, classes).
        """
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        names = [name for name in COLUMNS if name in state.rows[0]]
        writer.writerow(names)
        writer.writerows([format(row[name], COLUMNS[name]) for name in names] for row in state.rows)
        write_text(table.getvalue(), self.path / "metrics.csv")
        if self.events:
            self.events.log_epoch(state.rows[-1], rates)
            if state.best is not None and state.best["epoch"] == state.epoch:
                self.best_confusion = confusion, self.events.done
        if time.monotonic() - self.drawn >= CURVES_SECONDS:
            self.draw_curves(state)

    def draw_curves(self, state: RunState) -> None:
        """Draw curves.png from the rows of metrics.csv."""
        best = cast(dict[str, Any], state.best)  # each completed epoch sets it
        with replacing(self.path / "curves.png", suffix=".png") as partial:
            plot_curves(state.rows, best, partial)
        self.drawn = time.monotonic()

    def finish(self, state: RunState, summary: dict[str, Any], classes: Sequence[str]) -> None:
        """Draw the curves, write the best epoch's confusion matrix as the last event, and write summary.json."""
        self.draw_curves(state)
        if self.events:
            if self.best_confusion:
                confusion, update = self.best_confusion
                self.events.log_confusion(confusion, classes, update)
            self.events.close()
        write_json(summary, self.path / "summary.json")
