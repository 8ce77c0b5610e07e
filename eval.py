"""Evaluate a checkpoint or an exported file: python eval.py --checkpoint runs/quickstart/best.ckpt [--images PATH]"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # PYTHONSAFEPATH leaves it out

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

from argparse import Namespace
from pathlib import Path
from typing import Any

from src.arguments import existing, existing_file
from src.config.schema import SPLITS
from src.errors import ArgumentParser, UserError, run
from src.outputs import Output, add_overwrite, check_outputs, images_named, output_files


def main() -> None:
    # The options. Errors in them are reported before MindSpore is imported, which takes seconds.
    args = parse()
    refuse_unused(args)
    outputs = outputs_of(args)
    read = {"--checkpoint": args.checkpoint, "its description": f"{args.checkpoint}.json", "--images": args.images}
    check_outputs(outputs, read, args.overwrite)

    from src.data.datasets import inputs_of
    from src.deploy.trained import open_trained

    # The trained network: a checkpoint runs on MindSpore, an exported file runs on its own runtime.
    trained = open_trained(args.checkpoint, args.overrides, args.lite_python)
    check_outputs(outputs, inputs_of(trained.config.data), args.overwrite)
    if args.images is not None:
        predict_images(trained, args, outputs)
    else:
        evaluate_split(trained, args, outputs)


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=existing_file,
        help="a .ckpt from train.py, or a .mindir, .onnx or .ms from export.py",
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="the split to evaluate (default: the split that training evaluated)"
    )
    parser.add_argument(
        "--json",
        metavar="PATH",
        help="also write the metrics to this JSON file, and the confusion matrix and the reliability diagram as PNG",
    )
    parser.add_argument(
        "--images",
        type=existing,
        metavar="FILE_OR_FOLDER",
        help="predict these images instead of evaluating a split",
    )
    parser.add_argument(
        "--csv",
        metavar="PATH",
        help="with --images: write the predictions to this CSV file, and a contact sheet as PNG (default: "
        "predictions.csv beside the checkpoint)",
    )
    add_overwrite(parser)
    parser.add_argument("--lite-python", metavar="PATH", help="for .ms: the Python interpreter that has MindSpore Lite")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that replace the checkpoint's, such as data.root=FOLDER",
    )
    return parser.parse_intermixed_args()


def refuse_unused(args: Namespace) -> None:
    """Raise a `UserError` for an option that would have no effect."""
    unused = {"--csv": args.csv} if args.images is None else {"--split": args.split, "--json": args.json}
    for option, value in unused.items():
        if value is not None:
            raise UserError(f"{option} {value}: {'needs' if option == '--csv' else 'cannot be used with'} --images")


def outputs_of(args: Namespace) -> list[Output]:
    """Return the files that the options ask for: a table and the pictures beside it."""
    if args.images is None:
        return output_files("--json", args.json, ".json", ".png", ".reliability.png")
    if args.csv is None:
        args.csv = str(Path(args.checkpoint).parent / "predictions.csv")
    return output_files("--csv", args.csv, ".csv", ".png")


def predict_images(trained: Any, args: Namespace, outputs: list[Output]) -> None:
    """Predict the classes of the user's images; print and write the predictions.

    `trained` is a `Trained` of src/deploy/trained.py.
    """
    from src.evaluation.output import find_images, predict_files, print_predictions, write_predictions

    files = find_images(args.images)
    check_outputs(outputs, images_named(outputs, files), args.overwrite)
    seen, probabilities = predict_files(trained.step, trained.config, trained.classes, files, trained.batch_size)
    print_predictions(files, probabilities, trained.classes)
    write_predictions(files, seen, probabilities, trained.classes, args.csv)
    print(f"\nwritten: {args.csv}, {Path(args.csv).with_suffix('.png')}")


def evaluate_split(trained: Any, args: Namespace, outputs: list[Output]) -> None:
    """Evaluate each image of a split of the data set once; print and write the metrics.

    `trained` is a `Trained` of src/deploy/trained.py.
    """
    from src.data.datasets import load_samples
    from src.data.loading import eval_loader
    from src.evaluation.evaluate import predict, summarize
    from src.evaluation.output import print_evaluation, write_evaluation

    samples = load_samples(trained.config.data, args.split or "eval", trained.classes)
    if isinstance(samples.images, list):
        check_outputs(outputs, images_named(outputs, samples.images), args.overwrite)
    batches = eval_loader(trained.config, samples, trained.batch_size)
    result = summarize(predict(trained.step, batches))
    for note in samples.notes:
        print(f"note: {note}")
    if batches.bad:
        print(f"bad images left out (data.on_bad_image): {len(batches.bad):,}")
    print_evaluation(result, trained.classes)
    if args.json is not None:
        write_evaluation(result, trained.classes, args.json)
        print(f"written: {', '.join(str(output.path) for output in outputs)}")


if __name__ == "__main__":
    run(main)
