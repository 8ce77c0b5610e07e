"""Pictures of a run: curves, confusion matrix, contact sheet. Drawn without a display."""

import contextlib
import warnings

import numpy as np
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

TRAIN, TEST = "#888888", "#c2410c"


def new_figure(width, height, layout="constrained"):
    """Return a figure of `width` x `height` inches that needs no display and no global state."""
    figure = Figure((width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


@contextlib.contextmanager
def any_letters():
    """Let what the font lacks become a box, silently."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def save(figure, target):
    """Write a figure as PNG to `target`, a path or a binary file."""
    with any_letters():
        figure.savefig(target, dpi=110, format="png")


def plot_curves(rows, best, path):
    """Draw loss and top-1 over the epochs of metrics.csv's `rows` into the PNG at `path`; `best` is summary.json's."""
    # Drawn while a training waits: margins that are given take half the time of those that are found.
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
    # A test loss far above any training loss (BatchNorm's first epochs) would flatten all the rest.
    loss.set_ylim(0, 1.5 * max(row["train_loss"] for row in rows))
    loss.legend(frameon=False)
    accuracy.axhline(best["top1"] * 100, color=TEST, linewidth=0.8, linestyle=":")
    accuracy.set_title(f"best test top-1 {best['top1']:.2%} at epoch {best['epoch']}", fontsize=10)
    save(figure, path)


def plot_confusion(confusion, classes, path):
    """Draw images by (true, predicted) class into the PNG at `path`, coloured by the share of the true class.

    `path` may be a binary file as well.
    """
    count = len(classes)
    names = classes if count <= 50 else [str(count)]
    figure = new_figure(1, 1, layout=None)
    # Given margins, as for the curves: inches for the longest name and what stands beside it.
    renderer, font = figure.canvas.get_renderer(), FontProperties(size=rcParams["xtick.labelsize"])
    with any_letters():
        longest = max(renderer.get_text_width_height_descent(name, font, False)[0] for name in names)
    margin, side = longest / figure.dpi + 0.5, min(3 + 0.4 * count, 22)
    figure.set_size_inches(margin + side + 0.2, margin + side + 0.2)
    axes = figure.add_axes([margin, margin, side, side] / np.float64(margin + side + 0.2))
    axes.imshow(confusion / np.maximum(confusion.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= 50:
        axes.set_xticks(range(count), classes, rotation=45, ha="right")
        axes.set_yticks(range(count), classes)
    if count <= 25:
        shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        for row, column in zip(*np.nonzero(confusion)):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, confusion[row, column], ha="center", va="center", color=colour, fontsize=8)
    save(figure, path)


def plot_contact_sheet(images, captions, path, columns=8):
    """Draw uint8 images (H, W, C), each with a line or two of text above it, into the PNG at `path`."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(1.5 * columns, 1.8 * rows)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, caption in zip(figure.axes, images, captions):
        gray = image.shape[-1] == 1
        axes.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=255)
        axes.set_title(caption, fontsize=8)
    save(figure, path)
