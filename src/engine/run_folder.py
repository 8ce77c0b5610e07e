"""The run folder: config.yaml, metrics.csv, curves.png, best.ckpt, last.ckpt, summary.json and TensorBoard's events."""

import csv
import time
from pathlib import Path

from src.engine.events import Events, remove_events
from src.engine.figures import plot_curves
from src.engine.files import write_json
from src.errors import UserError

CURVES_SECONDS = 120  # between two drawings, each of which takes about half a second
FILES = ("config.yaml", "metrics.csv", "curves.png", "best.ckpt", "last.ckpt", "summary.json")
EVENTS = "events"  # the folder of TensorBoard's files
COLUMNS = {  # of metrics.csv; accuracies are fractions of 1
    "epoch": "d",
    "lr": ".6g",
    "train_loss": ".5f",
    "train_top1": ".5f",
    "test_loss": ".5f",
    "test_top1": ".5f",
    "test_top5": ".5f",
    "images_per_second": ".1f",
    "data_wait_fraction": ".4f",
    "seconds": ".2f",
}


class RunFolder:
    """Writes the record of one run; refuses a folder that holds another run unless told to overwrite it."""

    def __init__(self, path, overwrite=False):
        self.path = Path(path)
        present = [name for name in (*FILES, EVENTS) if (self.path / name).exists()]
        if present and not overwrite:
            raise UserError(
                f"run.dir: {self.path} already holds a run ({present[0]}); give another run.dir=… or --overwrite"
            )
        self.rows = []
        self.events = None
        self.best_confusion = None  # and the steps done by then; what was best before a resumption is not known
        self.drawn = time.monotonic()

    def start(self, config):
        """Make the folder, clear an earlier run's files and write the resolved config."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        remove_events(self.path / EVENTS)
        (self.path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        with open(self.path / "metrics.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(COLUMNS)
        if config.log.tensorboard:
            self.events = Events(self.path / EVENTS)

    def log_epoch(self, row, best, rates, confusion):
        """Append an epoch's `row`, a dict of COLUMNS, to metrics.csv and the events; redraw the curves now and then.

        `best` is the best epoch's so far, `rates` are the epoch's learning rates, `confusion` its test images by class.
        """
        self.rows.append(row)
        with open(self.path / "metrics.csv", "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(format(row[name], form) for name, form in COLUMNS.items())
        if self.events:
            self.events.log_epoch(row, rates)
            if best["epoch"] == row["epoch"]:
                self.best_confusion = confusion, self.events.done
        if time.monotonic() - self.drawn >= CURVES_SECONDS:
            plot_curves(self.rows, best, self.path / "curves.png")
            self.drawn = time.monotonic()

    def finish(self, summary, classes):
        """Draw the curves, end the events with the best epoch's confusion matrix, and write summary.json."""
        plot_curves(self.rows, summary["best"], self.path / "curves.png")
        if self.events:
            if self.best_confusion:
                confusion, step = self.best_confusion
                self.events.log_confusion(confusion, classes, step)
            self.events.close()
        write_json(summary, self.path / "summary.json")
