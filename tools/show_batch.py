"""What the network sees: python tools/show_batch.py --config photos.yaml --output batch.png

A contact sheet: first images of an augmented training batch, then the evaluation view of images of the other split.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from src.config.load import load_config
from src.data.datasets import load_samples
from src.data.loading import eval_loader, train_loader
from src.errors import ArgumentParser, UserError, run
from src.figures import plot_contact_sheet
from src.files import make_parent

COLUMNS = 8


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of settings")
    parser.add_argument("--output", default="batch.png", metavar="PATH", help="the PNG to write (default: batch.png)")
    parser.add_argument("--images", type=int, default=32, help="at most so many of each (default: 32)")
    parser.add_argument("--epoch", type=int, default=1, help="whose augmentations to show (default: 1)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    args = parser.parse_intermixed_args()
    if Path(args.output).suffix != ".png":
        raise UserError(f"--output {args.output}: must end with .png")
    if args.images < 1 or args.epoch < 1:
        raise UserError("--images and --epoch must be at least 1")

    config = load_config(args.config, args.overrides)
    train_samples = load_samples(config.data, "train")
    names = train_samples.classes
    test_samples = load_samples(config.data, "eval", names)
    # Classes stand one after the other, so that the first images would be of one class.
    spread = np.linspace(0, len(test_samples) - 1, min(args.images, len(test_samples))).round().astype(int)
    seen, captions = [], []
    for view, batches in (
        ("train", train_loader(config, train_samples).epoch(args.epoch)),
        ("eval", eval_loader(config, test_samples.take(spread), batch_size=args.images).epoch()),
    ):
        images, labels = next(batches)
        images, labels = images[: args.images], labels[: args.images]
        blank = -len(images) % COLUMNS if view == "train" else 0  # the other view begins a new row
        seen += [*images, *[np.full_like(images[0], 255)] * blank]
        captions += [f"{view}\n{names[label]}" for label in labels] + [""] * blank
        print(f"{view}: {len(images)} images, {images.shape[1]}x{images.shape[2]}, {images.shape[3]} channels")
    plot_contact_sheet(seen, captions, make_parent(args.output), COLUMNS)
    print(f"written: {args.output}")


if __name__ == "__main__":
    run(main)
