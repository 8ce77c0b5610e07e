"""The options of export.py, and the check that they fit together; this module does not import MindSpore."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from src.arguments import whole
from src.deploy.description import EXTENSIONS, format_of
from src.errors import UserError
from src.outputs import Output

DYNAMIC = "dynamic"  # a value of --batch
DYNAMIC_BATCH = 8  # images of a batch when a file with a dynamic batch size is verified
INPUTS = ("image", "tensor")
ONNX_FORMATS = ("onnx", "web")  # the network of a page is an ONNX file
PRECISIONS = ("float32", "float16", "int8")
DEFAULTS = {
    "calibration": 256,
    "max_drop": 1.0,
    "min_agreement": 98.0,
    "min_images": 200,
    "mindir_version": 1,
    "keep_right": 95.0,
}  # of the options that only some exports use


def batch_size(text: str) -> Union[int, str]:
    """Return the value of --batch: a number, or DYNAMIC."""
    return text if text == DYNAMIC else whole(1, 256)(text)


@dataclass(frozen=True)
class Options:
    """The options of one export; `export.py --help` explains each of them."""

    format: str
    input: str = "image"
    logits: bool = False
    batch: int = 1  # images of a batch; with `dynamic_batch`, of the batches of the verification
    dynamic_batch: bool = False  # onnx: the file takes any number of images
    precision: str = "float32"
    mindir_version: int = 1
    max_drop: float = 1.0  # percentage points of top-1 that float16 and int8 may lose
    min_agreement: float = 98.0  # float16, int8: percent of the images with the same top-1 class as the checkpoint
    min_images: int = 200  # int8: fewest images of the verification
    lite_python: Optional[str] = None
    calibrate: bool = True  # fit a temperature if the file outputs probabilities
    keep_right: float = 95.0  # percent of the right answers that the threshold keeps
    reduce_range: bool = False  # int8: weights with 7 bits
    ort_web: Optional[str] = None  # folder with the files of onnxruntime-web


def options_of(args: Namespace) -> Options:
    """Return the `Options` from export.py's arguments, and fill in the defaults of the options in use in `args`.

    An invalid value is a `UserError`, and so is an option that would have no effect.
    """
    kind = args.format or format_of(args.output)
    if kind is None or Path(args.output).suffix != EXTENSIONS[kind]:
        expected = EXTENSIONS[kind] if kind else ", ".join(EXTENSIONS.values())
        raise UserError(f"--output {args.output}: must end with {expected}")
    for override in args.overrides:
        if override.startswith("runtime.kernels="):
            raise UserError(
                f"{override}: is not supported, because an exported file always has stock operators; leave it out"
            )
    calibrate = not (args.logits or args.no_calibrate)
    if args.logits and args.no_calibrate:
        raise UserError("--no-calibrate: is not used with --logits, which is never calibrated; leave it out")
    version_3 = kind == "mindir" and args.mindir_version == 3
    used = {
        "calibration": args.precision == "int8",
        "max_drop": args.precision != "float32",
        "min_agreement": args.precision != "float32",
        "min_images": args.precision == "int8",
        "mindir_version": kind == "mindir",
        "keep_right": calibrate,
        "reduce_range": args.precision == "int8" and kind in ONNX_FORMATS,
        "lite_python": kind == "ms" or (kind == "mindir" and not version_3),
        "ort_web": kind == "web",
    }
    for name, is_used in used.items():
        value = getattr(args, name)
        if value is not None and value is not False and not is_used:
            described = f"--format {kind} --precision {args.precision}" + (" --mindir-version 3" if version_3 else "")
            if name == "keep_right":
                described = "--logits" if args.logits else "--no-calibrate"
            option = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise UserError(f"{option}: is not used with {described}; leave it out")
        if value is None and name in DEFAULTS:
            setattr(args, name, DEFAULTS[name])
    if args.precision != "float32" and (version_3 or kind == "air"):
        kind = "mindir --mindir-version 3" if version_3 else kind
        raise UserError(f"--format {kind} does not support --precision {args.precision}")
    if args.precision == "int8" and kind in ("mindir", "ncnn"):
        raise UserError(f"--format {kind} does not support --precision int8; use --format onnx or ms")
    if kind == "ncnn" and args.batch != 1:
        raise UserError(f"--batch {args.batch}: is not used with --format ncnn, which has no batches; leave it out")
    if kind == "web":
        fixed = {
            "--input tensor": args.input != "image",
            "--logits": args.logits,
            f"--batch {args.batch}": args.batch != 1,
        }
        for option, given in fixed.items():
            if given:
                raise UserError(f"{option}: is not used with --format web, whose page takes photos; leave it out")
    dynamic = args.batch == DYNAMIC
    if dynamic and kind != "onnx":
        raise UserError(f"--batch {DYNAMIC}: is supported with --format onnx only (found {kind}); give a number")
    if args.precision == "int8":
        check_images(args.verify, args.min_images)
    return Options(
        format=kind,
        input=args.input,
        logits=args.logits,
        batch=DYNAMIC_BATCH if dynamic else args.batch,
        dynamic_batch=dynamic,
        precision=args.precision,
        mindir_version=args.mindir_version,
        max_drop=args.max_drop,
        min_agreement=args.min_agreement,
        min_images=args.min_images,
        lite_python=args.lite_python,
        calibrate=calibrate,
        keep_right=args.keep_right,
        reduce_range=args.reduce_range,
        ort_web=args.ort_web,
    )


def outputs_of(args: Namespace) -> list[Output]:
    """Return the files that `export` may write for export.py's arguments."""
    endings = ["", ".json"]
    if args.golden is not None:
        endings += [f".golden.{ending}" for ending in ("json", "jpg", "png", "ppm", "pgm")]
    outputs = [Output("--output", f"{args.output}{ending}") for ending in endings]
    if args.precision == "int8" and Path(args.output).suffix == ".ms":
        outputs.append(Output("--output", f"{args.output}.int8", is_folder=True))
    if (args.format or format_of(args.output)) == "ncnn":
        outputs.append(Output("--output", Path(args.output).with_suffix(".bin")))
    return outputs


def check_images(count: int, least: int) -> None:
    """Raise a `UserError` if `count` images are too few to verify int8; `least` is the option --min-images."""
    if count < least:
        raise UserError(
            f"--precision int8: too few images for the verification (found {count}, expected at least {least}); raise "
            f"--verify, give a split with more images, or accept fewer with --min-images {count}"
        )
