"""Show what the network sees: python tools/show_batch.py --config photos.yaml --output batch.png

Draws a contact sheet. First come images of an augmented training batch. Then come images of the evaluation split, as
they are evaluated.
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

COLUMNS = 8


def main():
    args = parse()
    config = load_config(args.config, args.overrides)

    import numpy as np

    from src.data.datasets import load_samples
    from src.data.loading import eval_loader, train_loader
    from src.figures import plot_contact_sheet

    train_samples = load_samples(config.data, "train")
    names = train_samples.classes
    test_samples = load_samples(config.data, "eval", names)
    # The images are sorted by class. Evenly spread images show more than the first class.
    spread = np.linspace(0, len(test_samples) - 1, min(args.images, len(test_samples))).round().astype(int)
    shown, captions = [], []
    for view, batches in (
        ("train", train_loader(config, train_samples).epoch(args.epoch)),
        ("eval", eval_loader(config, test_samples.take(spread), batch_size=args.images).epoch()),
    ):
        images, labels = next(batches)
        images, labels = images[: args.images], labels[: args.images]
        blank = -len(images) % COLUMNS if view == "train" else 0  # the evaluation images begin a new row
        shown += [*images, *[np.full_like(images[0], 255)] * blank]
        captions += [f"{view}\n{names[label]}" for label in labels] + [""] * blank
        print(f"{view}: {len(images)} images, {images.shape[1]}x{images.shape[2]}, {images.shape[3]} channels")
    plot_contact_sheet(shown, captions, make_parent(args.output), COLUMNS)
    print(f"written: {args.output}")


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of settings")
    parser.add_argument("--output", default="batch.png", metavar="PATH", help="the PNG to write (default: batch.png)")
    parser.add_argument("--images", type=int, default=32, help="largest number of images from each split (default: 32)")
    parser.add_argument("--epoch", type=int, default=1, help="show the augmentations of this epoch (default: 1)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    args = parser.parse_intermixed_args()
    if Path(args.output).suffix != ".png":
        raise UserError(f"--output {args.output}: must end with .png")
    if args.images < 1 or args.epoch < 1:
        raise UserError("--images and --epoch must be at least 1")
    return args


if __name__ == "__main__":
    run(main)
