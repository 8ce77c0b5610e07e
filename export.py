"""Export a checkpoint for a device: python export.py --checkpoint runs/quickstart/best.ckpt --output digits.mindir"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # PYTHONSAFEPATH leaves it out

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

from argparse import Namespace
from collections.abc import Iterable
from typing import Any

from src.arguments import existing_file, number, whole
from src.config.schema import Config
from src.deploy.description import FORMATS, Description, Split
from src.deploy.options import INPUTS, PRECISIONS, batch_size, options_of, outputs_of
from src.errors import ArgumentParser, run
from src.outputs import add_overwrite, check_outputs


def main() -> None:
    # Check the options before MindSpore is imported, because the import takes seconds.
    args = parse()
    options = options_of(args)
    outputs = outputs_of(args)
    check_outputs(outputs, {"--checkpoint": args.checkpoint, "--golden": args.golden}, args.overwrite)

    from src.data.datasets import inputs_of, splits_of
    from src.deploy.export import check_target, export
    from src.deploy.quantize import full_batches
    from src.deploy.runtimes.lite import HOW_TO_GET, find_lite
    from src.weights.checkpoint import open_checkpoint

    # Open the trained network, and check that this device and the installed runtimes can write the format.
    opened = open_checkpoint(args.checkpoint, args.overrides)
    check_target(options)
    check_outputs(outputs, inputs_of(opened.config.data), args.overwrite)

    # Load the images for the verification and, for int8, the training images that give the ranges of activations.
    classes = opened.checkpoint.classes
    split: Split = "val" if "val" in splits_of(opened.config.data) else "test"  # as training evaluates
    loader = spread_loader(opened.config, split, args.verify, classes, options.batch)
    calibration: Iterable[Any] = ()
    if options.precision == "int8":
        training_loader = spread_loader(opened.config, "train", args.calibration, classes, options.batch)
        calibration = full_batches(training_loader, opened.classifier, options.input)

    # Write the file. It gets its name only after its outputs match the checkpoint's on each of its runtimes.
    description = export(opened, loader, split, args.output, options, calibration, args.golden)
    report(description, args.output)
    if args.golden:
        print(f"golden image: {args.output}.golden.json")
    if options.format == "mindir" and options.mindir_version == 1 and find_lite(options.lite_python) is None:
        print(f"not verified on MindSpore Lite, which was not found; {HOW_TO_GET}")


def parse() -> Namespace:
    """Return the command line's arguments."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=existing_file, help="best.ckpt or last.ckpt from train.py")
    parser.add_argument("--format", choices=FORMATS, help="default: by the extension of --output; web writes .html")
    parser.add_argument("--output", required=True, metavar="PATH", help="the file to write; PATH.json describes it")
    add_overwrite(parser)
    parser.add_argument(
        "--batch",
        type=batch_size,
        default=1,
        metavar="N",
        help="batch size, fixed in the file (default: 1); onnx: dynamic takes any number of images",
    )
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default="image",
        help="uint8 image (default), or float32 tensor that the application normalises",
    )
    parser.add_argument(
        "--no-calibrate", action="store_true", help="leave the probabilities as they are; see docs/deploy.md"
    )
    parser.add_argument(
        "--keep-right",
        type=number(0, 100),
        metavar="PERCENT",
        help='fit the threshold for "not sure" so that this share of the right answers is kept (default: 95)',
    )
    parser.add_argument("--logits", action="store_true", help="output logits instead of probabilities")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="weight precision; int8 also quantises activations (default: float32)",
    )
    parser.add_argument(
        "--calibration",
        type=whole(1, 10_000),
        metavar="N",
        help="int8: measure the ranges of activations on N training images (default: 256)",
    )
    parser.add_argument(
        "--reduce-range",
        action="store_true",
        help="int8 onnx: weights with 7 bits, for x86 processors without VNNI instructions",
    )
    parser.add_argument(
        "--max-drop",
        type=number(0, 100),
        metavar="POINTS",
        help="float16, int8: percentage points of top-1 that may be lost (default: 1)",
    )
    parser.add_argument(
        "--min-agreement",
        type=number(0, 100),
        metavar="PERCENT",
        help="float16, int8: percent of the images that must keep the checkpoint's top-1 class (default: 98)",
    )
    parser.add_argument(
        "--min-images", type=whole(1, 10_000_000), metavar="N", help="int8: verify on at least N images (default: 200)"
    )
    parser.add_argument(
        "--mindir-version", type=int, choices=(1, 3), help="mindir: version 1 (default) loads in more runtimes"
    )
    parser.add_argument("--lite-python", metavar="PATH", help="path of a Python that has MindSpore Lite")
    parser.add_argument(
        "--ort-web",
        metavar="FOLDER",
        help="web: folder dist of the npm package onnxruntime-web (default: the folder of tools/setup_ort_web.py)",
    )
    parser.add_argument(
        "--verify",
        type=whole(1, 10_000_000),
        default=1000,
        metavar="N",
        help="verify on N images, evenly spread over the split that training evaluated, val or else test "
        "(default: 1000)",
    )
    parser.add_argument(
        "--golden",
        type=existing_file,
        metavar="IMAGE",
        help="also write PATH.golden.json: the pixels and probabilities that an application must find for this JPEG or "
        "PNG",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="for example data.root of the images to verify on"
    )
    return parser.parse_intermixed_args()


def spread_loader(config: Config, split: str, count: int, classes: list[str], batch: int) -> Any:
    """Return a `Loader` for evaluation with `count` images that are evenly spread over a split."""
    import numpy as np

    from src.data.datasets import load_samples
    from src.data.loading import eval_loader

    samples = load_samples(config.data, split, classes)
    spread = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return eval_loader(config, samples.take(spread), batch_size=batch)


def report(description: Description, output: str) -> None:
    """Print what was written and how it was verified."""
    file_input, verification = description.input, description.verification
    shape = "x".join("N" if side is None else str(side) for side in file_input.shape)
    size = description.size + (description.weights.size if description.weights else 0)
    print(f"{output}: {size / 1e6:.2f} MB, input {file_input.dtype} {shape} ({file_input.layout})")
    for check in verification.runtimes:
        drop = verification.checkpoint_top1 - check.top1
        lost = ""
        if description.precision != "float32" and check.drop_interval:
            low, high = check.drop_interval
            lost = f", {100 * drop:.2f} points lost; 95 % interval, paired: {100 * low:.2f} to {100 * high:.2f}"
        images = f"{verification.images:,} {verification.split} images"
        print(
            f"verified on {check.runtime} {check.version} with {images}: logits differ by "
            f"at most {check.max_difference:.1e}, same top-1 class on {check.agreement:.2%}, top-1 {check.top1:.2%} "
            f"(checkpoint {verification.checkpoint_top1:.2%}{lost})"
        )
    if not verification.runtimes:
        print("not verified: only Ascend's own tools load this format")
    report_quantization(description)
    report_confidence(description)
    print(f"description: {output}.json")


def report_quantization(description: Description) -> None:
    """Print the accuracy with both ranges of int8 weights, and the layers that lose most or stay float32."""
    quantization = description.quantization
    if quantization is None:
        return
    ranges = ["8 bits", "7 bits (--reduce-range)"]
    used, other = reversed(ranges) if quantization.reduce_range else ranges
    print(f"int8 weights with {used}: top-1 {quantization.top1:.2%}; with {other}: {quantization.top1_other_range:.2%}")
    print("layers that lose most: " + ", ".join(f"{loss.layer} ({loss.loss:.3f})" for loss in quantization.lose_most))
    if quantization.float_layers:
        print(f"float32, to stay within the limits: {', '.join(quantization.float_layers)}")


def report_confidence(description: Description) -> None:
    """Print how the probabilities were calibrated."""
    found = description.confidence
    if found is None:
        if description.output.meaning == "probabilities":
            print("the probabilities are not calibrated")
        return
    print(
        f"calibrated on {found.fitted_images:,} images with temperature {found.temperature:.3f}; on "
        f"{found.tested_images:,} others, NLL {found.nll_before:.4f} became {found.nll_after:.4f}, "
        f"ECE {found.ece_before:.4f} became {found.ece_after:.4f}"
    )
    kept = "" if found.tested_kept_right is None else f", keeps {found.tested_kept_right:.1%} of the right answers"
    refused = "" if found.tested_refused_wrong is None else f", refuses {found.tested_refused_wrong:.1%} of the wrong"
    print(f"not sure below {found.threshold:.4f}{kept}{refused}")


if __name__ == "__main__":
    run(main)
