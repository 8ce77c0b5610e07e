"""What eval.py tells of a checkpoint: metrics of a split, or predictions for the user's own images."""

import csv
from pathlib import Path

import numpy as np

from src.data.folders import check_images
from src.data.loading import eval_loader
from src.data.samples import Samples
from src.errors import UserError
from src.evaluation.evaluate import predict, softmax
from src.figures import plot_confusion, plot_contact_sheet
from src.files import make_parent, write_json

SHEET_IMAGES = 64  # at most, on a contact sheet


def print_evaluation(result, classes):
    """Print the table of an `Evaluation`, percent and images."""
    width = max(len("class"), *(len(name) for name in classes))
    print(f"{'class':<{width}}  precision  recall  images")
    for row in result.per_class(classes):
        precision, recall = (f"{row[key]:.1%}" if row[key] is not None else "-" for key in ("precision", "recall"))
        print(f"{row['class']:<{width}}  {precision:>9}  {recall:>6}  {row['images']:>6}")
    print(f"\nloss {result.loss:.4f}  top-1 {result.top1:.2%}  top-5 {result.top5:.2%}  on {result.images:,} images")


def write_evaluation(result, classes, path):
    """Write an `Evaluation` as JSON to `path` and its confusion matrix as a PNG of the same name beside it."""
    content = {
        "loss": result.loss,
        "top1": result.top1,
        "top5": result.top5,
        "images": result.images,
        "classes": classes,
        "per_class": result.per_class(classes),
        "confusion": result.confusion.tolist(),
    }
    write_json(content, path)
    plot_confusion(result.confusion, classes, Path(path).with_suffix(".png"))


def find_images(path):
    """Return the image files at `path`, a file or a folder; a file that is no image is a `UserError`."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"--images: {path}: no such file or folder")
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [str(file) for file in files if file.is_file() and file.name[0] != "."]
    if not files:
        raise UserError(f"--images: {path}: has no images")
    check_images(files)
    return files


def predict_files(step, config, classes, files, batch_size=None):
    """Predict image files: return (the first SHEET_IMAGES as the network saw them, uint8; probabilities of all).

    Shapes are (n, H, W, C) and (N, classes); the step takes `batch_size` images, or as many as it is given.
    """
    samples = Samples(files, np.zeros(len(files), np.int32), classes)
    loader = eval_loader(config, samples, batch_size=batch_size or min(len(files), config.train.batch_size))
    loader.skip_bad = False  # each file has its row
    seen, probabilities = [], []
    for images, _, logits in predict(step, loader):
        seen += list(images[: max(0, SHEET_IMAGES - len(seen))])
        probabilities.append(softmax(logits))
    return seen, np.concatenate(probabilities)


def print_predictions(files, probabilities, classes):
    """Print a table of file, predicted class and its probability."""
    best = probabilities.argmax(1)
    width = max(len("image"), *(len(file) for file in files))
    print(f"{'image':<{width}}  probability  class")
    for file, label, row in zip(files, best, probabilities):
        print(f"{file:<{width}}  {row[label]:>11.1%}  {classes[label]}")


def write_predictions(files, seen, probabilities, classes, path):
    """Write every class's probability to the CSV at `path` and a contact sheet as a PNG of the same name beside it."""
    path = make_parent(path)
    best = probabilities.argmax(1)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "class", "probability", *(f"p({name})" for name in classes)])
        for name, label, row in zip(files, best, probabilities):
            writer.writerow([name, classes[label], f"{row[label]:.6f}", *(f"{value:.6f}" for value in row)])
    captions = [f"{classes[label]} {row[label]:.0%}" for label, row in zip(best, probabilities)]
    plot_contact_sheet(seen, captions[: len(seen)], path.with_suffix(".png"))
