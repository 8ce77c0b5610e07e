"""Curves over the epochs as the coordinates of an SVG picture; page.html draws them."""

import math
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 400, 220  # of the plotted area
MARKED_EPOCHS = 60  # up to so many, each epoch has a dot that tells its value


@dataclass(frozen=True)
class Line:
    """One curve: `points` as SVG reads them, `dots` as (x, y, text); None where a curve has no value."""

    run: int  # its number in the report
    label: str
    dashed: bool
    points: str
    dots: list


@dataclass(frozen=True)
class Chart:
    """A titled picture of lines; ticks are (position, text)."""

    title: str
    lines: list
    x_ticks: list
    y_ticks: list
    width: int = WIDTH
    height: int = HEIGHT


def make_charts(runs):
    """Return the charts of several `Run`s: losses, accuracies, learning rate and speed."""
    # A test loss far above any training loss (BatchNorm's first epochs) would flatten all the rest.
    highest_loss = 1.5 * max(row["train_loss"] for run in runs for row in run.rows)
    both = {"train": "train_{}", "test": "test_{}"}
    return [
        make_chart("Loss", runs, {split: name.format("loss") for split, name in both.items()}, "{:.4f}", highest_loss),
        make_chart("Top-1", runs, {split: name.format("top1") for split, name in both.items()}, "{:.2%}"),
        make_chart("Learning rate", runs, {"": "lr"}, "{:.3g}"),
        make_chart("Images/s", runs, {"": "images_per_second"}, "{:.0f}"),
    ]


def make_chart(title, runs, columns, form, highest=math.inf):
    """Return the `Chart` of `columns`, a dict of metrics.csv's columns by label; training is dashed.

    Values above `highest` leave the picture; `form` formats a value.
    """
    epochs = [row["epoch"] for run in runs for row in run.rows]
    values = [row[run.column(column)] for run in runs for row in run.rows for column in columns.values()]
    shown = [value for value in values if math.isfinite(value) and value <= highest] or [0.0]
    x_low, x_high = span(min(epochs), max(epochs))
    y_low, y_high = span(min(shown), max(shown))
    y_values = MaxNLocator(5).tick_values(y_low, y_high)
    y_low, y_high = min(y_values[0], y_low), max(y_values[-1], y_high)

    def x(epoch):
        return round((epoch - x_low) / (x_high - x_low) * WIDTH, 2)

    def y(value):
        return round((y_high - value) / (y_high - y_low) * HEIGHT, 2)

    lines = []
    for number, run in enumerate(runs):
        for label, column in columns.items():
            own = [(row["epoch"], row[run.column(column)]) for row in run.rows]
            own = [(epoch, value) for epoch, value in own if math.isfinite(value)]
            dots = [(x(epoch), y(value), f"epoch {epoch:.0f}: {form.format(value)}") for epoch, value in own]
            points = " ".join(f"{left},{top}" for left, top, _ in dots)
            lines.append(Line(number, label, label == "train", points, dots if len(dots) <= MARKED_EPOCHS else []))
    epoch_ticks = MaxNLocator(6, integer=True).tick_values(x_low, x_high)
    percent = form.endswith("%}")
    return Chart(
        title,
        lines,
        [(x(tick), f"{tick:.0f}") for tick in epoch_ticks if x_low <= tick <= x_high],
        [(y(tick), f"{tick * 100:.4g}%" if percent else f"{tick:.4g}") for tick in y_values],
    )


def span(low, high):
    """Return a range that is not empty."""
    return (low, high) if low < high else (low - 0.5, high + 0.5)
