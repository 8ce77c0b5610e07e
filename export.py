"""Export a checkpoint for a device: python export.py --checkpoint runs/quickstart/best.ckpt --output digits.mindir"""

from pathlib import Path

import numpy as np

from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.deploy.description import FORMATS
from src.deploy.export import INPUTS, PRECISIONS, Options, check_target, export
from src.deploy.lite import HOW_TO_GET, find_lite
from src.deploy.quantize import full_batches
from src.engine.checkpoint import adapt_config, load_checkpoint, restore
from src.engine.device import use_device
from src.errors import ArgumentParser, UserError, run

DEFAULTS = {"calibration": 256, "max_drop": 1.0, "mindir_version": 1}  # of options that not every export has


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a best.ckpt or last.ckpt of train.py")
    parser.add_argument("--format", choices=FORMATS, help="default: the ending of --output")
    parser.add_argument("--output", required=True, metavar="PATH", help="the file to write; PATH.json describes it")
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images a run, fixed in the file (default: 1)"
    )
    parser.add_argument(
        "--input", choices=INPUTS, default="image", help="uint8 image (default), or float32 tensor normalised outside"
    )
    parser.add_argument("--logits", action="store_true", help="put out logits instead of probabilities")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of the weights; int8: of the maps, too"
    )
    parser.add_argument(
        "--calibration", type=int, metavar="N", help="int8: measure ranges on N training images (default: 256)"
    )
    parser.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="float16, int8: top-1 that may be lost (default: 1)"
    )
    parser.add_argument(
        "--mindir-version", type=int, choices=(1, 3), help="mindir: 1 (default) loads in the most runtimes"
    )
    parser.add_argument("--lite-python", metavar="PATH", help="the Python that has MindSpore Lite")
    parser.add_argument(
        "--verify", type=int, default=1000, metavar="N", help="verify on N test images, evenly spread (default: 1000)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="such as data.root of the test images"
    )
    args = parser.parse_intermixed_args()
    options = checked(args)

    checkpoint = load_checkpoint(args.checkpoint)
    config = adapt_config(checkpoint.config, args.overrides)
    use_device(config.runtime)
    check_target(options)
    classifier = restore(checkpoint, args.checkpoint)
    test_loader = spread_loader(config, "eval", args.verify, checkpoint.classes, args.batch)
    calibration = None
    if options.precision == "int8":
        loader = spread_loader(config, "train", args.calibration, checkpoint.classes, args.batch)
        calibration = full_batches(loader, classifier, options.input)

    description = export(checkpoint, args.checkpoint, classifier, test_loader, args.output, options, calibration)
    report(description, args.output)
    if options.format == "mindir" and options.mindir_version == 1 and find_lite(options.lite_python) is None:
        print(f"not run on MindSpore Lite, which was not found: {HOW_TO_GET}")


def checked(args):
    """Return the `Options`; values that cannot be and options that would do nothing are mistakes."""
    ending = Path(args.output).suffix.lstrip(".")
    kind = args.format or (ending if ending in FORMATS else None)
    if ending != kind:
        raise UserError(f"--output {args.output}: must end with .{kind or ', .'.join(FORMATS)}")
    for name in ("batch", "verify", "calibration"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    for override in args.overrides:
        if override.startswith("runtime.kernels="):
            raise UserError(f"{override}: an export always has MindSpore's own operators, leave it out")
    newest = kind == "mindir" and args.mindir_version == 3
    used = {
        "calibration": args.precision == "int8",
        "max_drop": args.precision != "float32",
        "mindir_version": kind == "mindir",
        "lite_python": kind == "ms" or (kind == "mindir" and not newest),
    }
    for name, is_used in used.items():
        value = getattr(args, name)
        if value is not None and not is_used:
            described = f"--format {kind} --precision {args.precision}" + (" --mindir-version 3" if newest else "")
            raise UserError(f"--{name.replace('_', '-')} {value}: is not used with {described}")
        if value is None and name in DEFAULTS:
            setattr(args, name, DEFAULTS[name])
    if args.precision != "float32" and (newest or kind == "air"):
        kind = "mindir --mindir-version 3" if newest else kind
        raise UserError(f"--precision {args.precision}: cannot be had with --format {kind}")
    if args.precision == "int8" and kind == "mindir":
        raise UserError("--precision int8: is for --format onnx and ms, not mindir")
    return Options(
        format=kind,
        input=args.input,
        logits=args.logits,
        batch=args.batch,
        precision=args.precision,
        mindir_version=args.mindir_version,
        max_drop=args.max_drop,
        lite_python=args.lite_python,
    )


def spread_loader(config, split, count, classes, batch):
    """Return the loader of `count` evaluated images, evenly spread over a split."""
    samples = load_samples(config.data, split, classes)
    spread = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return eval_loader(config, samples.take(spread), batch_size=batch)


def report(description, output):
    taken, proven = description.input, description.verification
    shape = "x".join(map(str, taken.shape))
    print(f"{output}: {description.size / 1e6:.2f} MB, takes {taken.dtype} {shape} ({taken.layout})")
    for check in proven.runtimes:
        drop = proven.checkpoint_top1 - check.top1
        lost = f", {100 * drop:.2f} points lost" if description.precision != "float32" else ""
        print(
            f"verified on {check.runtime} {check.version}, {proven.images:,} test images: logits differ by at most "
            f"{check.max_difference:.1e}, same top-1 on {check.agreement:.2%}, top-1 {check.top1:.2%} "
            f"(checkpoint {proven.checkpoint_top1:.2%}{lost})"
        )
    if not proven.runtimes:
        print("not verified: nothing but the device's own tools loads this format")
    print(f"described in {output}.json")


if __name__ == "__main__":
    run(main)
