"""What export.py can be asked for, and which options fit together. Nothing here imports MindSpore."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from src.deploy.description import FORMATS
from src.errors import UserError

INPUTS = ("image", "tensor")
PRECISIONS = ("float32", "float16", "int8")
DEFAULTS = {"calibration": 256, "max_drop": 1.0, "mindir_version": 1}  # of options that only some exports have


@dataclass(frozen=True)
class Options:
    """What is asked of an export; export.py explains each option."""

    format: str
    input: str = "image"
    logits: bool = False
    batch: int = 1
    precision: str = "float32"
    mindir_version: int = 1
    max_drop: float = 1.0  # percent points of top-1 that float16 and int8 may lose
    lite_python: Optional[str] = None


def options_of(args: Namespace) -> Options:
    """Return the `Options` of export.py's arguments, and give `args` the defaults of the options that it uses.

    An impossible value, and an option that would do nothing, are a `UserError`.
    """
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
