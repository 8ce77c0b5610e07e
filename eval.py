"""Evaluate a checkpoint or an exported file: python eval.py --checkpoint runs/quickstart/best.ckpt [--images PATH]"""

from pathlib import Path

from src.data.datasets import SPLITS, load_samples
from src.data.loading import eval_loader
from src.deploy.artefact import open_trained
from src.engine.evaluate import predict, summarize
from src.engine.report import (
    find_images,
    predict_files,
    print_evaluation,
    print_predictions,
    write_evaluation,
    write_predictions,
)
from src.errors import ArgumentParser, UserError, run


def main():
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
    args = parser.parse_intermixed_args()
    refuse_unused(args)

    trained = open_trained(args.checkpoint, args.overrides, args.lite_python)
    step, config, classes = trained.step, trained.config, trained.classes

    if args.images:
        files = find_images(args.images)
        seen, probabilities = predict_files(step, config, classes, files, trained.batch_size)
        print_predictions(files, probabilities, classes)
        table = Path(args.csv or Path(args.checkpoint).with_name("predictions.csv"))
        write_predictions(files, seen, probabilities, classes, table)
        print(f"\nwritten: {table}, {table.with_suffix('.png')}")
        return

    samples = load_samples(config.data, args.split or "eval", classes)
    batches = eval_loader(config, samples, trained.batch_size)
    result = summarize(predict(step, batches))
    for note in samples.notes:
        print(f"note: {note}")
    if batches.bad:
        print(f"bad images left out (data.on_bad_image): {len(batches.bad):,}")
    print_evaluation(result, classes)
    if args.json:
        write_evaluation(result, classes, args.json)
        print(f"written: {args.json}, {Path(args.json).with_suffix('.png')}")


def refuse_unused(args):
    """An option that would do nothing is a mistake."""
    unused = {"--csv": args.csv} if not args.images else {"--split": args.split, "--json": args.json}
    for option, value in unused.items():
        if value is not None:
            raise UserError(f"{option} {value}: {'needs' if option == '--csv' else 'cannot be used with'} --images")


if __name__ == "__main__":
    run(main)
