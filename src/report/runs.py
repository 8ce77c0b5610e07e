"""The runs of a report: the contents of their run folders, and an evaluation of their best checkpoints on a split."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union, cast

import numpy as np

from src.cost.count import count_macs, count_params
from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.errors import UserError
from src.evaluation.evaluate import Evaluation, make_eval_step, predict, softmax, summarize
from src.kernels.convert import use_kernels
from src.weights.checkpoint import Checkpoint, load_checkpoint, open_checkpoint

# Columns of metrics.csv.
METRICS = ("epoch", "lr", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5")
# Further columns of metrics.csv if the run keeps a moving average of the weights.
AVERAGE = ("average_loss", "average_top1", "average_top5")
# Keys of summary.json's `final`, the last evaluation on the test split.
FINAL = ("epoch", "top1", "top5", "loss")
# Columns of metrics.csv for each epoch, and keys of summary.json for the whole run.
SPEED = ("images_per_second", "data_wait_fraction", "seconds")

# What `predict` yields per batch: images, labels, logits.
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Run:
    """The contents of a run folder."""

    name: str  # the path of the folder, as the user gave it
    checkpoint: Checkpoint  # best.ckpt
    rows: list[dict[str, float]]  # of metrics.csv, one per epoch
    final: dict[str, float]  # with the keys FINAL
    speed: dict[str, float]  # with the keys SPEED, for the whole run
    finished: bool  # whether summary.json is about the last epoch

    @property
    def best(self) -> dict[str, Any]:
        """Return the epoch and the metrics of best.ckpt."""
        return cast(dict[str, Any], self.checkpoint.best)  # train.py writes the metrics into best.ckpt

    def column(self, name: str) -> str:
        """Return the column of metrics.csv to show for `name`.

        With a moving average of the weights, best.ckpt holds the averaged weights. Then `average_…` replaces `test_…`.
        """
        averaged = name.replace("test_", "average_")
        return averaged if averaged in self.rows[0] else name


@dataclass(frozen=True)
class Mistake:
    """An image whose predicted class is wrong."""

    image: np.ndarray  # the network's input, uint8 (H, W, C)
    position: int  # index of the image in the split
    label: int
    predicted: int
    probability: float  # of the predicted class
    true_probability: float  # of the true class


@dataclass(frozen=True)
class Findings:
    """The evaluation of a run's best checkpoint on a split, and the cost of its network."""

    evaluation: Evaluation
    mistakes: list[Mistake]  # sorted by the probability of the predicted class, the highest first
    sources: Optional[Sequence[Any]]  # the file of each image of the split; None if the images are not files
    params: int
    macs: int


def read_run(path: Union[str, Path]) -> Run:
    """Return the run in the folder at `path`; raise `UserError` if it is not a run folder or is damaged."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path}: no such run folder")
    for name in ("metrics.csv", "best.ckpt"):
        if not (folder / name).is_file():
            raise UserError(f"{path}: is not a run folder with a finished epoch: {name} is missing")
    rows = read_metrics(folder / "metrics.csv")
    checkpoint = load_checkpoint(folder / "best.ckpt")
    if checkpoint.best is None:
        raise UserError(f"{folder / 'best.ckpt'}: has no metrics, so it is not from train.py; report a run of train.py")
    if (folder / "summary.json").exists():
        final, speed = read_summary(folder / "summary.json")
        # If a resumed run has trained further epochs, summary.json is still about the earlier end.
        if final["epoch"] == rows[-1]["epoch"]:
            return Run(str(path), checkpoint, rows, final, speed, finished=True)
    final, speed = summary_of(rows)
    return Run(str(path), checkpoint, rows, final, speed, finished=False)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a metrics.csv, each as a dict of floats by column."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: is damaged: {error}") from None
    header, lines = (lines[0], lines[1:]) if lines else ([], [])
    missing = [name for name in (*METRICS, *SPEED) if name not in header]
    if missing:
        raise UserError(f"{path}: is damaged: the column {missing[0]} is missing")
    if not lines:
        raise UserError(f"{path}: has no finished epoch yet")
    names = [name for name in (*METRICS, *AVERAGE, *SPEED) if name in header]
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            values = {name: float(line[header.index(name)]) for name in names}
        except (ValueError, IndexError):
            raise UserError(f"{path}: line {number} is truncated or damaged") from None
        rows.append(values)
    return rows


def read_summary(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return the final metrics and the speed that a summary.json contains."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        final = {name: float(summary["final"][name]) for name in FINAL}
        return final, {name: float(summary[name]) for name in SPEED}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: is damaged: {error}") from None


def summary_of(rows: Sequence[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return what `read_summary` returns, computed from the epochs of an unfinished run."""
    # All epochs have the same number of images, so the mean speed is the harmonic mean of the epochs' speeds.
    seconds_per_image = [1 / row["images_per_second"] for row in rows if row["images_per_second"] > 0]
    speed = {
        "images_per_second": len(seconds_per_image) / sum(seconds_per_image) if seconds_per_image else 0.0,
        "data_wait_fraction": sum(row["data_wait_fraction"] for row in rows) / len(rows),
        "seconds": sum(row["seconds"] for row in rows),
    }
    kind = "average" if AVERAGE[0] in rows[-1] else "test"
    final = {"epoch": rows[-1]["epoch"], **{name: rows[-1][f"{kind}_{name}"] for name in FINAL[1:]}}
    return final, speed


def examine(run: Run, split: str, count: int, overrides: Sequence[str]) -> Findings:
    """Return the findings on the run's best checkpoint on `split`, with at most `count` mistakes.

    `overrides` are settings, section.key=value, that replace the checkpoint's.
    """
    checkpoint, config, classifier = open_checkpoint(run.checkpoint.path, overrides)
    params = count_params(classifier)
    macs = count_macs(classifier, checkpoint.config.data.image_size, checkpoint.config.data.channels)
    use_kernels(classifier, config.runtime)
    step = make_eval_step(classifier, compiled=config.runtime.mode == "graph")
    samples = load_samples(config.data, split, checkpoint.classes)
    mistakes: list[Mistake] = []
    loader = eval_loader(config, samples)
    evaluation = summarize(keep_worst(predict(step, loader), count, mistakes))
    return Findings(evaluation, mistakes, loader.sources(), params, macs)


def keep_worst(batches: Iterable[Batch], count: int, mistakes: list[Mistake]) -> Iterator[Batch]:
    """Pass on what `predict` yields, and fill the list `mistakes` with the `count` most confident mistakes.

    Of equally confident mistakes, the first in the split comes first.
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


def confidence(mistake: Mistake) -> float:
    return mistake.probability
