"""Show the learning rate over a run, of one or several configs, as a table and a picture.

python tools/plot_schedule.py --config configs/quickstart.yaml schedule.name=linear --output schedule.png
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import argparse

from src.arguments import existing, whole
from src.config.load import load_config
from src.errors import ArgumentParser, UserError, run
from src.files import make_parent, replacing
from src.outputs import add_overwrite, check_outputs, output_files

ROWS = 20  # the table has about this many rows at most


def main():
    args = parse()
    configs = {path: load_config(path, args.overrides) for path in args.config}

    from src.training.schedule import learning_rates

    schedules = {}
    for path, config in configs.items():
        steps = args.steps_per_epoch or steps_of_data(config, args.ranks)
        schedules[path] = steps, learning_rates(config, steps, args.ranks)
    print_table(schedules)
    if args.output is not None:
        with replacing(make_parent(args.output)) as partial:
            plot(schedules, partial)


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config",
        type=existing,
        required=True,
        action="append",
        metavar="PATH",
        help="YAML file of settings; may be repeated",
    )
    parser.add_argument(
        "--steps-per-epoch",
        type=whole(1, 100_000),
        metavar="N",
        help="updates per epoch (default: counted from the data)",
    )
    parser.add_argument("--ranks", type=whole(1, 100_000), default=1, help="devices that train together (default: 1)")
    parser.add_argument("--output", metavar="PATH", help="draw the schedules into this PNG")
    add_overwrite(parser)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the files'")
    args = parser.parse_intermixed_args()
    configs = {f"--config {path}": path for path in args.config}
    check_outputs(output_files("--output", args.output, ".png"), configs, args.overwrite)
    return args


def steps_of_data(config, ranks):
    """Return the number of updates per epoch on the config's training images."""
    from src.data.datasets import load_samples

    count = len(load_samples(config.data, "train"))
    images = config.train.batch_size * config.train.accumulate * ranks
    if count < images:
        raise UserError(f"train.batch_size: an update takes {images} images, but {config.data.name} has only {count}")
    return count // images


def print_table(schedules):
    """Print the learning rate at the start of epochs and at the last update, one column per schedule."""
    longest = max(len(rates) // steps for steps, rates in schedules.values())
    for number, (path, (steps, rates)) in enumerate(schedules.items(), start=1):
        print(f"({number}) {path}: {len(rates) // steps} epochs of {steps:,} updates")
    print("\n   epoch" + "".join(f"{f'({number})':>12}" for number in range(1, len(schedules) + 1)))
    for epoch in [*range(0, longest, -(-longest // ROWS)), longest]:
        cells = ""
        for steps, rates in schedules.values():
            # No epoch begins at the end of the run, so the last row shows the last update.
            ended = epoch * steps > len(rates)
            cells += " " * 12 if ended else f"{rates[min(epoch * steps, len(rates) - 1)]:12.4g}"
        print(f"{epoch:8}{cells}")


def plot(schedules, path):
    """Draw the learning rates over the epochs into the PNG at `path`."""
    import numpy as np

    from src.figures import new_figure, plain, save

    figure = new_figure(9, 3.6)
    axes = figure.subplots()
    for number, (name, (steps, rates)) in enumerate(schedules.items(), start=1):
        axes.plot(np.arange(len(rates)) / steps, rates, label=plain(f"({number}) {name}"))
    axes.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    run(main)
