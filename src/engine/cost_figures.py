"""Pictures of what networks cost. Drawn without a display."""

from src.engine.figures import new_figure

MACS, PARAMS, ACCESS = "#1d4ed8", "#0f766e", "#c2410c"
PAPER = "#9ca3af"


def plot_costs(rows, label, title, path):
    """Draw bars of MACs, parameters and bytes of each of the `rows`, named by their key `label`, into the PNG at `path`."""
    figure = new_figure(10, 1.2 + 0.24 * len(rows))
    figure.suptitle(title, fontsize=11)
    names = [row[label] for row in rows]
    panels = (("macs", MACS, "MACs"), ("params", PARAMS, "parameters"), ("bytes", ACCESS, "memory access (bytes)"))
    for axes, (key, colour, said) in zip(figure.subplots(1, 3, sharey=True), panels):
        values = [row[key] / 1e6 for row in rows]
        bars = axes.barh(range(len(rows)), values, color=colour, height=0.72)
        axes.bar_label(bars, [f"{value:.3g}" if value else "" for value in values], padding=2, fontsize=7)
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.set_xlim(0, 1.15 * max(values))
        axes.set_xlabel(f"{said}, millions")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    # All panels share the axis: the first operation on top.
    axes.set_ylim(len(rows) - 0.4, -0.6)
    figure.savefig(path, dpi=110)
