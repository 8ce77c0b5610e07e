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

from src.arguments import existing, whole
from src.config.load import load_config
from src.errors import ArgumentParser, run
from src.files import make_parent, replacing
from src.outputs import add_overwrite, check_outputs, images_named, output_files

COLUMNS = 8


def main():
    args = parse()
    config = load_config(args.config, args.overrides)

    import numpy as np

    from src.data.datasets import inputs_of, load_samples
    from src.data.loading import eval_loader, train_loader
    from src.figures import plot_contact_sheet

    outputs = output_files("--output", args.output, ".png")
    check_outputs(outputs, {"--config": args.config, **inputs_of(config.data)}, args.overwrite)
    train_samples = load_samples(config.data, "train")
    names = train_samples.classes
    test_samples = load_samples(config.data, "eval", names)
    for samples in (train_samples, test_samples):
        if isinstance(samples.images, list):
            check_outputs(outputs, images_named(outputs, samples.images), args.overwrite)
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
    with replacing(make_parent(args.output)) as partial:
        plot_contact_sheet(shown, captions, partial, COLUMNS)
    print(f"written: {args.output}")


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=existing, required=True, help="YAML file of settings")
    parser.add_argument("--output", default="batch.png", metavar="PATH", help="the PNG to write (default: batch.png)")
    add_overwrite(parser)
    parser.add_argument(
        "--images", type=whole(1, 256), default=32, help="largest number of images from each split (default: 32)"
    )
    parser.add_argument(
        "--epoch", type=whole(1, 10_000), default=1, help="show the augmentations of this epoch (default: 1)"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    args = parser.parse_intermixed_args()
    return args


if __name__ == "__main__":
    run(main)
