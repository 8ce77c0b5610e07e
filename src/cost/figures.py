"""Figures of what networks cost. They need no display."""

from pathlib import Path
from typing import Any

from src.figures import new_figure

MACS, PARAMS, ACCESS = "#1d4ed8", "#0f766e", "#c2410c"
PAPER = "#9ca3af"


def plot_costs(rows: list[dict[str, Any]], label: str, title: str, path: Path) -> None:
    """Draw MACs, parameters and bytes of each row into the PNG at `path`; key `label` of a row has its name."""
    figure = new_figure(10, 1.2 + 0.24 * len(rows))
    figure.suptitle(title, fontsize=11)
    names = [row[label] for row in rows]
    panels = (
        ("macs", 1e6, MACS, "MACs (millions)"),
        ("params", 1e3, PARAMS, "parameters (thousands)"),
        ("bytes", 1e6, ACCESS, "memory access (MB)"),
    )
    for axes, (key, unit, colour, axis_label) in zip(figure.subplots(1, 3, sharey=True), panels):
        values = [row[key] / unit for row in rows]
        bars = axes.barh(range(len(rows)), values, color=colour, height=0.72)
        axes.bar_label(
            bars,
            [f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value else "" for value in values],
            padding=2,
            fontsize=7,
        )
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.set_xlim(0, 1.15 * max(values))
        axes.set_xlabel(axis_label)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    # All panels share this axis. The first row is at the top.
    axes.set_ylim(len(rows) - 0.4, -0.6)
    figure.savefig(path, dpi=110, format="png")


def plot_choice(variants: list[dict[str, Any]], limits: dict[str, float], latency: str, path: Path) -> None:
    """Draw top-1 against latency into the PNG at `path`, or against MACs if `limits` has no latency limit.

    `latency` is the label of the axis.

    Filled marks are variants within the limits. A line joins the Pareto front: the variants for which no other variant
    is both cheaper and more accurate.
    """
    key, label, unit = ("ms", latency, 1) if "ms" in limits else ("macs", "MACs (millions)", 1e6)
    known = sorted(
        (row for row in variants if row["top1"] is not None and row[key] is not None),
        key=lambda row: (row[key], -row["top1"]),
    )
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for colour, name in enumerate(dict.fromkeys(row["model"] for row in known)):
        widths = [row for row in known if row["model"] == name]
        faces = [f"C{colour}" if row["fits"] else "none" for row in widths]
        axes.scatter(
            [row[key] / unit for row in widths],
            [row["top1"] for row in widths],
            s=46,
            c=faces,
            edgecolors=f"C{colour}",
            zorder=3,
        )
        axes.scatter([], [], s=46, color=f"C{colour}", label=name)
    front = [row for i, row in enumerate(known) if all(row["top1"] > other["top1"] for other in known[:i])]
    axes.plot([row[key] / unit for row in front], [row["top1"] for row in front], color=PAPER, linewidth=1, zorder=1)
    for row in front:
        axes.annotate(
            f"{row['width']:g}x",
            (row[key] / unit, row["top1"]),
            (-4, 6),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    if key in limits:
        axes.axvline(limits[key] / unit, color=ACCESS, linewidth=0.9, linestyle=":")
    axes.set(xlabel=label, ylabel="ImageNet top-1 reported by the authors (%)")
    axes.set_title("filled: within the limits; line: no other variant is both cheaper and more accurate", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110, format="png")


def plot_guidelines(lines: list[dict[str, Any]], titles: dict[str, str], path: Path) -> None:
    """Draw the relative speeds on this device and in the paper into the PNG at `path`.

    `titles` maps each of the four guidelines to its title.
    """
    figure = new_figure(10, 6)
    for axes, (guideline, title) in zip(figure.subplots(2, 2).flat, titles.items()):
        shown = [line for line in lines if line["guideline"] == guideline]
        for offset, key, colour, label in (
            (-0.2, "relative", MACS, "this device"),
            (0.2, "paper_relative", PAPER, "paper, ARM"),
        ):
            places = [place + offset for place in range(len(shown))]
            bars = axes.barh(places, [line[key] for line in shown], height=0.38, color=colour, label=label)
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        axes.set_yticks(range(len(shown)), [line["line"] for line in shown], fontsize=8)
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1.15 * max(line[key] for line in shown for key in ("relative", "paper_relative")))
        axes.set_title(f"{guideline}: {title}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    figure.supxlabel("images per second, relative to the first row", fontsize=9)
    figure.savefig(path, dpi=110, format="png")
