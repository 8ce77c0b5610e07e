"""Pictures of what networks cost. Drawn without a display."""

from src.figures import new_figure

MACS, PARAMS, ACCESS = "#1d4ed8", "#0f766e", "#c2410c"
PAPER = "#9ca3af"


def plot_costs(rows, label, title, path):
    """Draw the MACs, parameters and bytes of each of the `rows`, named by their key `label`, into the PNG at `path`."""
    figure = new_figure(10, 1.2 + 0.24 * len(rows))
    figure.suptitle(title, fontsize=11)
    names = [row[label] for row in rows]
    panels = (
        ("macs", 1e6, MACS, "MACs (millions)"),
        ("params", 1e3, PARAMS, "parameters (thousands)"),
        ("bytes", 1e6, ACCESS, "memory access (MB)"),
    )
    for axes, (key, unit, colour, said) in zip(figure.subplots(1, 3, sharey=True), panels):
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
        axes.set_xlabel(said)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    # All panels share the axis: the first operation on top.
    axes.set_ylim(len(rows) - 0.4, -0.6)
    figure.savefig(path, dpi=110)


def plot_choice(variants, limits, path):
    """Draw top-1 against latency, or against MACs where none was measured, into the PNG at `path`.

    Variants that fit are filled; a line joins those that no other beats in both (Pareto).
    """
    key, label, unit = ("ms", "latency (ms)", 1) if "ms" in limits else ("macs", "MACs (millions)", 1e6)
    known = sorted(
        (row for row in variants if row["top1"] is not None and row[key] is not None),
        key=lambda row: (row[key], -row["top1"]),
    )
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for colour, name in enumerate(dict.fromkeys(row["model"] for row in known)):
        own = [row for row in known if row["model"] == name]
        faces = [f"C{colour}" if row["fits"] else "none" for row in own]
        axes.scatter(
            [row[key] / unit for row in own],
            [row["top1"] for row in own],
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
    axes.set(xlabel=label, ylabel="top-1 the authors report (%)")
    axes.set_title("filled: fits; line: no other is both cheaper and more accurate", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def plot_guidelines(lines, titles, path):
    """Draw each guideline's relative speeds, here and in the paper, into the PNG at `path`; `titles` name the four."""
    figure = new_figure(10, 6)
    for axes, (guideline, title) in zip(figure.subplots(2, 2).flat, titles.items()):
        own = [line for line in lines if line["guideline"] == guideline]
        for offset, key, colour, label in (
            (-0.2, "relative", MACS, "this device"),
            (0.2, "paper_relative", PAPER, "paper, ARM"),
        ):
            places = [place + offset for place in range(len(own))]
            bars = axes.barh(places, [line[key] for line in own], height=0.38, color=colour, label=label)
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        axes.set_yticks(range(len(own)), [line["line"] for line in own], fontsize=8)
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1.15 * max(line[key] for line in own for key in ("relative", "paper_relative")))
        axes.set_title(f"{guideline}: {title}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    figure.supxlabel("images a second, relative to the first line", fontsize=9)
    figure.savefig(path, dpi=110)
