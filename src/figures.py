"""Figures of a run: curves, confusion matrix and contact sheet. Drawing them needs no display."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

TRAIN, TEST = "#888888", "#c2410c"  # colours of the two splits
Target = Union[str, Path, BinaryIO]


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """Return a figure of `width` x `height` inches that needs neither a display nor global state."""
    figure = Figure((width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


@contextlib.contextmanager
def any_letters() -> Iterator[None]:
    """Draw any text without a warning: characters that are missing in the font, right-to-left writing, long names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def plain(text: str) -> str:
    """Return a text that matplotlib draws as it is: dollar signs mean no formula, and lone surrogates are escaped."""
    return text.replace("$", r"\$").encode("utf-8", "backslashreplace").decode()


def save(figure: Figure, target: Target) -> None:
    """Write a figure as PNG to `target`, a path or an open binary file."""
    with any_letters():
        figure.savefig(target, dpi=110, format="png")


def plot_curves(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any], path: Target) -> None:
    """Draw loss and top-1 over the epochs into the PNG at `path`.

    `rows` are the rows of metrics.csv, `best` is the entry of summary.json.
    """
    # Training waits for this figure. Fixed margins take half the time of margins that matplotlib computes.
    figure = new_figure(9, 3.6, layout=None)
    figure.subplots_adjust(left=0.065, right=0.985, bottom=0.14, top=0.91, wspace=0.18)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) == 1 else None
    for axes, key, scale, label in ((loss, "loss", 1, "loss"), (accuracy, "top1", 100, "top-1 (%)")):
        for split, colour in (("train", TRAIN), ("test", TEST)):
            values = [row[f"{split}_{key}"] * scale for row in rows]
            axes.plot(epochs, values, color=colour, marker=marker, label=split)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    # In the first epochs, BatchNorm can give test losses far above any training loss. They would flatten all curves.
    loss.set_ylim(0, 1.5 * max(row["train_loss"] for row in rows) or 1)
    loss.legend(frameon=False)
    accuracy.axhline(best["top1"] * 100, color=TEST, linewidth=0.8, linestyle=":")
    accuracy.set_title(f"best test top-1 {best['top1']:.2%} at epoch {best['epoch']}", fontsize=10)
    save(figure, path)


def plot_confusion(confusion: np.ndarray, classes: Sequence[str], path: Target) -> None:
    """Draw a confusion matrix into the PNG at `path`, a path or an open binary file.

    `confusion` counts images by (true class, predicted class). The colour of a cell is its share of the true class.
    """
    count = len(classes)
    names = [plain(name) for name in classes] if count <= 50 else [str(count)]
    figure = new_figure(1, 1, layout=None)
    # Fixed margins, as for the curves: inches for the longest class name and the label of the axis.
    renderer, font = FigureCanvasAgg(figure).get_renderer(), FontProperties(size=rcParams["xtick.labelsize"])
    with any_letters():
        longest = max(renderer.get_text_width_height_descent(name, font, False)[0] for name in names)
    margin, side = longest / figure.dpi + 0.5, min(3 + 0.4 * count, 22)
    figure.set_size_inches(margin + side + 0.2, margin + side + 0.2)
    whole = margin + side + 0.2
    axes = figure.add_axes((margin / whole, margin / whole, side / whole, side / whole))
    axes.imshow(confusion / np.maximum(confusion.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= 50:
        axes.set_xticks(range(count), names, rotation=45, ha="right")
        axes.set_yticks(range(count), names)
    if count <= 25:
        shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        for row, column in zip(*np.nonzero(confusion)):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, confusion[row, column], ha="center", va="center", color=colour, fontsize=8)
    save(figure, path)


def plot_reliability(rows: Sequence[Mapping[str, float]], ece: float, path: Target) -> None:
    """Draw a reliability diagram into the PNG at `path`: accuracy and mean confidence by the top-1 probability.

    `rows` come from `Reliability.rows`. A network that is well calibrated has its bars on the diagonal. Below them is
    the share of the images in each interval.
    """
    figure = new_figure(4.6, 5.2)
    accuracy, share = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left, width = [row["low"] for row in rows], [row["high"] - row["low"] for row in rows]
    accuracy.bar(left, [row["accuracy"] for row in rows], width, align="edge", color=TEST, alpha=0.7, edgecolor="white")
    accuracy.plot([0, 1], [0, 1], color=TRAIN, linestyle=":", label="as right as sure")
    accuracy.plot([row["confidence"] for row in rows], [row["accuracy"] for row in rows], "o", color="black", ms=3)
    accuracy.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"expected calibration error {ece:.4f}")
    accuracy.legend(frameon=False, loc="upper left")
    images = sum(row["images"] for row in rows)
    share.bar(left, [row["images"] / images for row in rows], width, align="edge", color=TRAIN, edgecolor="white")
    share.set(xlabel="probability of the top-1 class", ylabel="share of images")
    for axes in (accuracy, share):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def plot_contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], path: Target, columns: int = 8) -> None:
    """Draw uint8 images (H, W, C), each with a caption of one or two lines above it, into the PNG at `path`."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(1.5 * columns, 1.8 * rows)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, caption in zip(figure.axes, images, captions):
        gray = image.shape[-1] == 1
        axes.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=255)
        axes.set_title(plain(caption), fontsize=8)
    save(figure, path)
