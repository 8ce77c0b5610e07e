"""Evaluate a checkpoint or an exported file: python eval.py --checkpoint runs/quickstart/best.ckpt [--images PATH]"""

from argparse import Namespace
from pathlib import Path

from src.config.schema import SPLITS
from src.errors import ArgumentParser, UserError, run


def main() -> None:
    # What the user asks for. A mistake in the options is answered before MindSpore is imported, which takes seconds.
    args = parse()
    refuse_unused(args)

    from src.deploy.trained import open_trained

    # The trained network: a checkpoint on MindSpore, or an exported file on the runtime that it is for.
    trained = open_trained(args.checkpoint, args.overrides, args.lite_python)
    if args.images:
        predict_images(trained, args)
    else:
        evaluate_split(trained, args)


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="a .ckpt of train.py, or a .mindir, .onnx or .ms of export.py"
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="which images to evaluate (default: what training evaluated on)"
    )
    parser.add_argument("--json", metavar="PATH", help="also write the metrics there, and the confusion matrix as PNG")
    parser.add_argument("--images", metavar="FILE_OR_FOLDER", help="predict these images instead of evaluating a split")
    parser.add_argument(
        "--csv",
        metavar="PATH",
        help="with --images: where the predictions go, with a contact sheet as PNG (default: predictions.csv beside "
        "the checkpoint)",
    )
    parser.add_argument("--lite-python", metavar="PATH", help="for .ms: the Python that has MindSpore Lite")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as data.root or runtime.device")
    return parser.parse_intermixed_args()


def refuse_unused(args: Namespace) -> None:
    """An option that would do nothing is a mistake."""
    unused = {"--csv": args.csv} if not args.images else {"--split": args.split, "--json": args.json}
    for option, value in unused.items():
        if value is not None:
            raise UserError(f"{option} {value}: {'needs' if option == '--csv' else 'cannot be used with'} --images")


def predict_images(trained, args: Namespace) -> None:
    """Predict the user's own images; print and write what each of them shows."""
    from src.evaluation.output import find_images, predict_files, print_predictions, write_predictions

    files = find_images(args.images)
    seen, probabilities = predict_files(trained.step, trained.config, trained.classes, files, trained.batch_size)
    print_predictions(files, probabilities, trained.classes)
    table = Path(args.csv or Path(args.checkpoint).with_name("predictions.csv"))
    write_predictions(files, seen, probabilities, trained.classes, table)
    print(f"\nwritten: {table}, {table.with_suffix('.png')}")


def evaluate_split(trained, args: Namespace) -> None:
    """Evaluate a split of the data set, each image once; print and write its metrics."""
    from src.data.datasets import load_samples
    from src.data.loading import eval_loader
    from src.evaluation.evaluate import predict, summarize
    from src.evaluation.output import print_evaluation, write_evaluation

    samples = load_samples(trained.config.data, args.split or "eval", trained.classes)
    batches = eval_loader(trained.config, samples, trained.batch_size)
    result = summarize(predict(trained.step, batches))
    for note in samples.notes:
        print(f"note: {note}")
    if batches.bad:
        print(f"bad images left out (data.on_bad_image): {len(batches.bad):,}")
    print_evaluation(result, trained.classes)
    if args.json:
        write_evaluation(result, trained.classes, args.json)
        print(f"written: {args.json}, {Path(args.json).with_suffix('.png')}")


if __name__ == "__main__":
    run(main)
