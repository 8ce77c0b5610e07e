"""The run folder: config.yaml, metrics.csv, curves.png, best.ckpt, last.ckpt and summary.json."""

import csv
from pathlib import Path

from src.engine.figures import plot_curves
from src.engine.files import write_json
from src.errors import UserError

FILES = ("config.yaml", "metrics.csv", "curves.png", "best.ckpt", "last.ckpt", "summary.json")
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
        present = [name for name in FILES if (self.path / name).exists()]
        if present and not overwrite:
            raise UserError(
                f"run.dir: {self.path} already holds a run ({present[0]}); give another run.dir=… or --overwrite"
            )
        self.rows = []

    def start(self, config):
        """Make the folder, clear an earlier run's files and write the resolved config."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        (self.path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        with open(self.path / "metrics.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(COLUMNS)

    def log_epoch(self, row, best):
        """Append an epoch's `row`, a dict of COLUMNS, to metrics.csv and redraw the curves with the `best` so far."""
        self.rows.append(row)
        with open(self.path / "metrics.csv", "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(format(row[name], form) for name, form in COLUMNS.items())
        plot_curves(self.rows, best, self.path / "curves.png")

    def finish(self, summary):
        """Write summary.json."""
        write_json(summary, self.path / "summary.json")
