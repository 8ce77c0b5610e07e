"""The run folder: config, metrics, curves, checkpoints, TensorBoard events and summary of one run."""

import csv
import fcntl
import io
import os
import re
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
from src.outputs import CHECKPOINTS, CONFIG, EVENTS, MARK, RUN_FILES, is_run
from src.runs.state import RunState
from src.runs.tensorboard import Events, remove_events
from src.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

CURVES_SECONDS = 120  # least time between two drawings of the curves; a drawing takes about half a second
# The names of files in CHECKPOINTS; a file with another name is the user's.
STATE, WEIGHTS = re.compile(r"state-\d{5,}-\d{7,}\.ckpt"), re.compile(r"epoch-\d{5,}\.ckpt")
# The names of temporary files in the run folder and in CHECKPOINTS.
REMAINDER = re.compile(rf"\.({'|'.join(map(re.escape, RUN_FILES))}|(state|epoch)-[\d-]+\.ckpt){re.escape(PARTIAL)}.*")
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
    """Writes the record of one run; a lock keeps other processes from writing to the same folder.

    With `overwrite`, `start` replaces a run that the folder holds.
    """

    def __init__(self, path: Union[str, Path], overwrite: bool = False) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self.lock: Optional[TextIO] = None
        self.events: Optional[Events] = None
        # The confusion matrix of the best epoch and its number of updates. A resumed run does not know the matrix of an
        # earlier epoch.
        self.best_confusion: Optional[tuple[np.ndarray, int]] = None
        self.drawn = time.monotonic()  # time of the last drawing of the curves

    def contents(self) -> list[str]:
        """Return the names of RUN_FILES that are in the folder; a folder with hidden files only does not count."""
        found = [name for name in RUN_FILES if os.path.lexists(self.path / name)]
        empty = [
            name
            for name in (CHECKPOINTS, EVENTS)
            if (self.path / name).is_dir() and all(file.name[0] == "." for file in (self.path / name).iterdir())
        ]
        return [name for name in found if name not in empty]

    def results(self) -> list[str]:
        """Return what is in the folder that a run writes after its first state only."""
        return [name for name in self.contents() if name not in (CONFIG, EVENTS)]

    def refuse_contents(self) -> None:
        """Raise a `UserError` if a new run in the folder would replace anything that it may not replace."""
        present = self.contents()
        if present and not is_run(self.path):
            raise UserError(
                f"run.dir: {self.path} has files that may not be of a run (found {', '.join(present)}, and no "
                f"{CONFIG} of train.py); choose another run.dir=…"
            )
        if present and not self.overwrite:
            raise UserError(
                f"run.dir: {self.path} already contains a run (found {present[0]}); resume it with --resume "
                f"{self.path}, choose another run.dir=…, or replace it with --overwrite"
            )

    def start(self, config: Config) -> None:
        """Begin a run: create the folder, remove the files of an earlier run, and write the resolved config.

        Without `overwrite`, nothing is removed. `resume.open_run` has seen that the folder has no results; if another
        process has written results since, a `UserError` is raised.
        """
        self.open()
        if self.overwrite or self.results():
            self.refuse_contents()
            # The states come first: a run that is only half removed cannot be resumed. config.yaml comes last, because
            # it marks the folder until the new file replaces it.
            for file in [*self.states(), *self.kept_weights()]:
                file.unlink()
            remove_events(self.path / EVENTS)
            for name in RUN_FILES:
                if name not in (CONFIG, CHECKPOINTS, EVENTS):
                    (self.path / name).unlink(missing_ok=True)
        if self.overwrite or not (self.path / CONFIG).exists():
            write_text(MARK + config.to_yaml(), self.path / CONFIG)

    def open(self) -> None:
        """Create the folder if it is missing, lock it, and remove the temporary files of killed processes.

        If something in the folder would stop the run later, a `UserError` is raised.
        """
        for name in RUN_FILES:
            path, is_folder = self.path / name, name in (CHECKPOINTS, EVENTS)
            if os.path.lexists(path) and path.is_dir() != is_folder:
                expected = ("a file", "a folder")[is_folder]
                raise UserError(f"run.dir: {path} is in the way (expected {expected}); move it away")
        (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        # Mode a, because the lock has no content, and w would delete the content of a file that a link leads to.
        self.lock = open(self.path / CHECKPOINTS / ".lock", "a")  # noqa: SIM115 - open until the process ends
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"run.dir: another process trains in {self.path}; choose another run.dir=…") from None
        for folder in (self.path, self.path / CHECKPOINTS):
            for remainder in folder.iterdir():
                if REMAINDER.fullmatch(remainder.name):
                    remainder.unlink()

    def states(self) -> list[Path]:
        """Return the paths of the states from which the run can be resumed, newest first."""
        return sorted(self.checkpoints(STATE), reverse=True)

    def kept_weights(self) -> list[Path]:
        """Return the paths of the weights of the best epochs."""
        return self.checkpoints(WEIGHTS)

    def checkpoints(self, pattern: re.Pattern[str]) -> list[Path]:
        """Return the paths in CHECKPOINTS whose name matches the pattern."""
        return [path for path in (self.path / CHECKPOINTS).glob("*.ckpt") if pattern.fullmatch(path.name)]

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
        for old in self.kept_weights():
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
