"""Show the learning rate over a run, of one or several configs, as a table and a picture.

python tools/plot_schedule.py --config configs/quickstart.yaml schedule.name=linear --output schedule.png
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import argparse
from pathlib import Path

from src.config.load import load_config
from src.errors import ArgumentParser, UserError, run
from src.files import make_parent

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
    if args.output:
        plot(schedules, make_parent(args.output))


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, action="append", metavar="PATH", help="YAML file of settings; may be repeated"
    )
    parser.add_argument(
        "--steps-per-epoch", type=int, metavar="N", help="updates per epoch (default: counted from the data)"
    )
    parser.add_argument("--ranks", type=int, default=1, help="devices that train together (default: 1)")
    parser.add_argument("--output", metavar="PATH", help="draw the schedules into this PNG")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the files'")
    args = parser.parse_intermixed_args()
    for option in ("steps_per_epoch", "ranks"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: must be at least 1")
    if args.output and Path(args.output).suffix != ".png":
        raise UserError(f"--output {args.output}: must end with .png")
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

    from src.figures import new_figure

    figure = new_figure(9, 3.6)
    axes = figure.subplots()
    for name, (steps, rates) in schedules.items():
        axes.plot(np.arange(len(rates)) / steps, rates, label=name)
    axes.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run(main)
