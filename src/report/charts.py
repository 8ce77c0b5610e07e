"""Curves over the epochs, as coordinates of SVG charts; page.html draws the charts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from src.report.runs import Run

WIDTH, HEIGHT = 400, 220  # of the plotted area, in SVG units
MARKED_EPOCHS = 60  # a curve of at most this many epochs has dots, which show the values

Tick = tuple[float, str]  # position, text


@dataclass(frozen=True)
class Line:
    """One curve. Epochs whose value is not finite are left out."""

    run: int  # index of the run in the report
    label: str
    dashed: bool
    points: str  # as the attribute `points` of an SVG polyline
    dots: list[tuple[float, float, str]]  # x, y, text


@dataclass(frozen=True)
class Chart:
    """Curves with a title and two axes."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT


def make_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts of several runs: loss, top-1, learning rate and speed."""
    # In the first epochs, BatchNorm can give test losses far above any training loss. They would flatten all curves.
    highest_loss = 1.5 * max(row["train_loss"] for run in runs for row in run.rows)
    return [
        make_chart("Loss", runs, {"train": "train_loss", "test": "test_loss"}, "{:.4f}", highest_loss),
        make_chart("Top-1", runs, {"train": "train_top1", "test": "test_top1"}, "{:.2%}"),
        make_chart("Learning rate", runs, {"": "lr"}, "{:.3g}"),
        make_chart("Images/s", runs, {"": "images_per_second"}, "{:.0f}"),
    ]


def make_chart(
    title: str, runs: Sequence[Run], columns: Mapping[str, str], template: str, highest: float = math.inf
) -> Chart:
    """Return the chart of some columns of metrics.csv, over the epochs.

    `columns` maps the labels of the curves to columns; the curve with the label `train` is dashed. `template` formats a
    value. Values above `highest` do not widen the axis, so their part of the curve is outside the plotted area.
    """
    epochs = [row["epoch"] for run in runs for row in run.rows]
    values = [row[run.column(column)] for run in runs for row in run.rows for column in columns.values()]
    shown = [value for value in values if math.isfinite(value) and value <= highest] or [0.0]
    x_low, x_high = span(min(epochs), max(epochs))
    y_low, y_high = span(min(shown), max(shown))
    y_values = MaxNLocator(5).tick_values(y_low, y_high)
    y_low, y_high = min(y_values[0], y_low), max(y_values[-1], y_high)

    def x(epoch: float) -> float:
        return round((epoch - x_low) / (x_high - x_low) * WIDTH, 2)

    def y(value: float) -> float:
        return round((y_high - value) / (y_high - y_low) * HEIGHT, 2)

    lines = []
    for number, run in enumerate(runs):
        for label, column in columns.items():
            curve = [(row["epoch"], row[run.column(column)]) for row in run.rows]
            curve = [(epoch, value) for epoch, value in curve if math.isfinite(value)]
            dots = [(x(epoch), y(value), f"epoch {epoch:.0f}: {template.format(value)}") for epoch, value in curve]
            points = " ".join(f"{left},{top}" for left, top, _ in dots)
            lines.append(Line(number, label, label == "train", points, dots if len(dots) <= MARKED_EPOCHS else []))
    epoch_ticks = MaxNLocator(6, integer=True).tick_values(x_low, x_high)
    percent = template.endswith("%}")
    return Chart(
        title,
        lines,
        [(x(tick), f"{tick:.0f}") for tick in epoch_ticks if x_low <= tick <= x_high],
        [(y(tick), f"{tick * 100:.4g}%" if percent else f"{tick:.4g}") for tick in y_values],
    )


def span(low: float, high: float) -> tuple[float, float]:
    """Return the range from `low` to `high`, widened if it is empty."""
    return (low, high) if low < high else (low - 0.5, high + 0.5)
