"""The runs of a report: what their folders say, and how their best checkpoints do on a split."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from src.cost.count import count_macs, count_params
from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.errors import UserError
from src.evaluation.evaluate import Evaluation, make_eval_step, predict, softmax, summarize
from src.kernels.convert import use_kernels
from src.weights.checkpoint import Checkpoint, load_checkpoint, open_checkpoint

METRICS = ("epoch", "lr", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5")  # of metrics.csv
AVERAGE = ("average_loss", "average_top1", "average_top5")  # of metrics.csv where the run keeps a moving average
FINAL = ("epoch", "top1", "top5", "loss")  # of summary.json, the last evaluation on the test split
SPEED = ("images_per_second", "data_wait_fraction", "seconds")  # of metrics.csv, an epoch's, and summary.json


@dataclass(frozen=True)
class Run:
    """What a run folder says."""

    name: str  # its path, as the user gave it
    checkpoint: Checkpoint  # best.ckpt
    rows: list  # of metrics.csv: a dict of floats an epoch
    final: dict  # FINAL
    speed: dict  # of the whole run: SPEED
    finished: bool  # whether summary.json is of the last epoch

    def column(self, name):
        """Return the column of metrics.csv that says of the weights as shipped what `test_…` says of the raw ones."""
        averaged = name.replace("test_", "average_")
        return averaged if averaged in self.rows[0] else name


@dataclass(frozen=True)
class Mistake:
    """An image whose predicted class is wrong."""

    image: np.ndarray  # as the network saw it, uint8 (H, W, C)
    position: int  # in the split
    label: int
    predicted: int
    probability: float  # of the predicted class
    own_probability: float  # of the true class


@dataclass(frozen=True)
class Findings:
    """How a run's best checkpoint does on a split, and what its network costs."""

    evaluation: Evaluation
    mistakes: list  # the most confident ones first
    sources: Optional[list]  # of each image of the split, where they are files
    params: int
    macs: int


def read_run(path):
    """Return the `Run` in the folder at `path`; one that is none, or is damaged, is a `UserError`."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path}: no such run folder")
    for name in ("metrics.csv", "best.ckpt"):
        if not (folder / name).is_file():
            raise UserError(f"{path}: is not the folder of a run that has ended an epoch: it has no {name}")
    rows = read_metrics(folder / "metrics.csv")
    checkpoint = load_checkpoint(folder / "best.ckpt")
    if (folder / "summary.json").exists():
        final, speed = read_summary(folder / "summary.json")
        # One of fewer epochs was left by a training that another one is going on with.
        if final["epoch"] == rows[-1]["epoch"]:
            return Run(str(path), checkpoint, rows, final, speed, True)
    return Run(str(path), checkpoint, rows, *summary_of(rows), False)


def read_metrics(path):
    """Return the rows of a metrics.csv, each a dict of floats by column."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: is damaged: {error}") from None
    header, lines = (lines[0], lines[1:]) if lines else ([], [])
    missing = [name for name in (*METRICS, *SPEED) if name not in header]
    if missing:
        raise UserError(f"{path}: is damaged: it has no column {missing[0]}")
    if not lines:
        raise UserError(f"{path}: has no epoch yet")
    names = [name for name in (*METRICS, *AVERAGE, *SPEED) if name in header]
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            values = {name: float(line[header.index(name)]) for name in names}
        except (ValueError, IndexError):
            raise UserError(f"{path}: line {number} is cut short or damaged") from None
        rows.append(values)
    return rows


def read_summary(path):
    """Return the final metrics and the speed that a summary.json tells."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        final = {name: float(summary["final"][name]) for name in FINAL}
        return final, {name: float(summary[name]) for name in SPEED}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: is damaged: {error}") from None


def summary_of(rows):
    """Return the same of a run that has not ended, from its epochs, which are of equal numbers of images."""
    passed = [1 / row["images_per_second"] for row in rows if row["images_per_second"] > 0]
    speed = {
        "images_per_second": len(passed) / sum(passed) if passed else 0.0,
        "data_wait_fraction": sum(row["data_wait_fraction"] for row in rows) / len(rows),
        "seconds": sum(row["seconds"] for row in rows),
    }
    kind = "average" if AVERAGE[0] in rows[-1] else "test"
    final = {"epoch": rows[-1]["epoch"], **{name: rows[-1][f"{kind}_{name}"] for name in FINAL[1:]}}
    return final, speed


def examine(run, split, count, overrides):
    """Return the `Findings` of the run's best checkpoint on `split`, with its `count` worst mistakes."""
    checkpoint, config, classifier = open_checkpoint(run.checkpoint.path, overrides)
    params = count_params(classifier)
    macs = count_macs(classifier, checkpoint.config.data.image_size, checkpoint.config.data.channels)
    use_kernels(classifier, config.runtime)
    step = make_eval_step(classifier, compiled=config.runtime.mode == "graph")
    samples = load_samples(config.data, split, checkpoint.classes)
    mistakes = []
    loader = eval_loader(config, samples)
    evaluation = summarize(keep_worst(predict(step, loader), count, mistakes))
    return Findings(evaluation, mistakes, loader.sources(), params, macs)


def keep_worst(batches, count, mistakes):
    """Pass on what `predict` yields, and fill the list `mistakes` with the `count` most confident ones.

    Of equally confident ones the first in the split is the worse.
    """
    position = 0
    for images, labels, logits in batches:
        predicted, probabilities = logits.argmax(1), softmax(logits)
        for i in np.flatnonzero(predicted != labels):
            mistakes.append(
                Mistake(
                    images[i].copy(),
                    position + int(i),
                    int(labels[i]),
                    int(predicted[i]),
                    float(probabilities[i, predicted[i]]),
                    float(probabilities[i, labels[i]]),
                )
            )
        mistakes.sort(key=confidence, reverse=True)
        del mistakes[count:]
        position += len(labels)
        yield images, labels, logits


def confidence(mistake):
    return mistake.probability
