"""The options of the tools that time networks: the runtime, its precision and its threads. Imports no MindSpore."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from src.arguments import whole
from src.errors import UserError


def add_runtime(parser: ArgumentParser, runtimes: Sequence[str]) -> None:
    """Add the options; the first of the `runtimes` is the default."""
    parser.add_argument("--runtime", choices=runtimes, default=runtimes[0], help=f"default: {runtimes[0]}")
    parser.add_argument(
        "--precision", choices=("float32", "int8"), default="float32", help="int8: with onnx only (default: float32)"
    )
    parser.add_argument("--threads", type=whole(1, 1024), help="threads of an exported file's runtime (default: 1)")
    parser.add_argument("--lite-python", metavar="PATH", help="with --runtime lite: the Python that has MindSpore Lite")
    parser.add_argument("--device", help="with --runtime mindspore: auto (default), cpu, gpu or ascend")


def check_runtime(args: Namespace) -> None:
    """Raise a `UserError` for an option that the runtime does not use; fill in the defaults of the others."""
    in_mindspore = args.runtime == "mindspore"
    used = {"threads": not in_mindspore, "device": in_mindspore, "lite_python": args.runtime == "lite"}
    for name, is_used in used.items():
        value = getattr(args, name)
        if value is not None and not is_used:
            option = f"--{name.replace('_', '-')} {value}"
            raise UserError(f"{option}: is not used with --runtime {args.runtime}; leave it out")
    if args.precision == "int8" and args.runtime != "onnx":
        raise UserError(f"--precision int8: needs --runtime onnx (found {args.runtime})")
    if in_mindspore:
        args.device = args.device or "auto"
    else:
        args.threads = args.threads or 1
