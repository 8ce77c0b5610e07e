"""The output of eval.py: the metrics of a split, or predictions for the user's images."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np

from src.config.schema import Config
from src.data.folders import check_images, unreadable_text
from src.data.listing import files_below
from src.data.loading import eval_loader
from src.data.samples import Samples
from src.errors import UserError
from src.evaluation.evaluate import Evaluation, Step, predict, softmax
from src.figures import plot_confusion, plot_contact_sheet, plot_reliability
from src.files import make_parent, replacing

RELIABILITY = ".reliability.png"  # ending of the name of the reliability diagram
SHEET_IMAGES = 64  # largest number of images on a contact sheet


def print_evaluation(result: Evaluation, classes: Sequence[str]) -> None:
    """Print an `Evaluation` as a table: precision and recall in percent, and the number of images, per class."""
    width = max(len("class"), *(len(name) for name in classes))
    print(f"{'class':<{width}}  precision  recall  images")
    for row in result.per_class(classes):
        precision, recall = (f"{row[key]:.1%}" if row[key] is not None else "-" for key in ("precision", "recall"))
        print(f"{row['class']:<{width}}  {precision:>9}  {recall:>6}  {row['images']:>6}")
    metrics = f"loss {result.loss:.4f}  top-1 {result.top1:.2%}  top-5 {result.top5:.2%}"
    print(f"\n{metrics}  ECE {result.reliability.ece:.4f}  on {result.images:,} images")


def write_evaluation(result: Evaluation, classes: list[str], path: Union[str, Path]) -> None:
    """Write an `Evaluation` as JSON to `path`, and its confusion matrix as a PNG with the same name beside it.

    The reliability diagram is a PNG beside them, with RELIABILITY at the end of its name.
    """
    content = {
        "loss": result.loss,
        "top1": result.top1,
        "top5": result.top5,
        "ece": result.reliability.ece,
        "images": result.images,
        "classes": classes,
        "per_class": result.per_class(classes),
        "confusion": result.confusion.tolist(),
        "reliability": result.reliability.rows(),
    }
    path = make_parent(path)
    matrix, curve = path.with_suffix(".png"), path.with_suffix(RELIABILITY)
    with replacing(path) as table, replacing(matrix) as picture, replacing(curve) as diagram:
        table.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        plot_confusion(result.confusion, classes, picture)
        plot_reliability(result.reliability.rows(), result.reliability.ece, diagram)


def find_images(path: Union[str, Path]) -> list[str]:
    """Return the image files at `path`, a file or a folder; a file that is not an image is a `UserError`."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"--images: {path}: no such file or folder")
    found, _, problems = files_below(path) if path.is_dir() else ([str(path)], [], {})
    if problems:
        raise UserError(f"--images: {unreadable_text(problems)}; make them readable or remove them")
    files = [file for file in found if os.path.basename(file)[0] != "."]
    if not files:
        raise UserError(f"--images: {path}: has no images")
    check_images(files)
    return files


def predict_files(
    step: Step, config: Config, classes: list[str], files: list[str], batch_size: Optional[int] = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Predict the classes of image files.

    Return the first SHEET_IMAGES images as the network sees them, uint8 (H, W, C), and the probabilities for all files,
    float64 (N, classes). `batch_size` is the number of images that the step needs; None: it takes any number.
    """
    samples = Samples(files, np.zeros(len(files), np.int32), classes)
    loader = eval_loader(config, samples, batch_size=batch_size or min(len(files), config.train.batch_size))
    loader.skip_bad = False  # because each file needs a row in the table
    seen: list[np.ndarray] = []
    probabilities = []
    for images, _, logits in predict(step, loader):
        seen += list(images[: max(0, SHEET_IMAGES - len(seen))])
        probabilities.append(softmax(logits))
    return seen, np.concatenate(probabilities)


def print_predictions(files: Sequence[str], probabilities: np.ndarray, classes: Sequence[str]) -> None:
    """Print a table: file, probability of the predicted class, predicted class."""
    best = probabilities.argmax(1)
    width = max(len("image"), *(len(file) for file in files))
    print(f"{'image':<{width}}  probability  class")
    for file, label, row in zip(files, best, probabilities):
        print(f"{file:<{width}}  {row[label]:>11.1%}  {classes[label]}")


def write_predictions(
    files: Sequence[str],
    seen: Sequence[np.ndarray],
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: Union[str, Path],
) -> None:
    """Write the probability of every class to the CSV at `path`, and a contact sheet as a PNG with the same name.

    `seen` are the first images, as `predict_files` returns them.
    """
    path = make_parent(path)
    best = probabilities.argmax(1)
    captions = [f"{classes[label]} {row[label]:.0%}" for label, row in zip(best, probabilities)]
    with replacing(path) as table, replacing(path.with_suffix(".png")) as picture:
        with open(table, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "class", "probability", *(f"p({name})" for name in classes)])
            for name, label, row in zip(files, best, probabilities):
                writer.writerow([name, classes[label], f"{row[label]:.6f}", *(f"{value:.6f}" for value in row)])
        plot_contact_sheet(seen, captions[: len(seen)], picture)
