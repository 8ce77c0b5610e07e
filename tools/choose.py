"""Find the networks that fit your limits: python tools/choose.py --max-ms 20 --image-size 224 --plot choice.png

Prints parameters, MACs and the ImageNet top-1 that the authors report. With --max-ms it also measures the latency per
image on this machine (batch 1, with normalisation). Networks that another limit rules out are not measured.
--runtime says what runs the networks: onnx, lite and ncnn export each network with random weights, and keep the files
in ~/.cache/pocketspore; mindspore compiles each network in MindSpore, as training does.
Networks are prepared in order of their MACs, the smallest first; after --seconds no further network is prepared.
Then the networks are timed in turn.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import argparse
from time import perf_counter

from src.arguments import above_zero, whole
from src.config.load import make_config
from src.cost.runtime_options import add_runtime, check_runtime
from src.errors import ArgumentParser, UserError, did_you_mean, run
from src.files import make_parent, replacing, write_json
from src.outputs import add_overwrite, check_outputs, output_files

RUNTIMES = ("onnx", "lite", "ncnn", "mindspore")
LIMITS = {"max_ms": "ms", "max_params": "params", "max_macs": "macs"}


def main():
    args = parse()
    end = perf_counter() + args.seconds
    runtime = make_config({"runtime": {"device": args.device or "cpu"}}, source="command line").runtime

    from src.cost.figures import plot_choice
    from src.runtime.device import use_device

    use_device(runtime)
    limits = {key: getattr(args, option) for option, key in LIMITS.items() if getattr(args, option) is not None}
    variants = read_variants(args)
    unmeasured = measure(variants, limits, args, end) if "ms" in limits else []
    for row in variants:
        row["fits"] = fits(row, limits)
    print_variants(variants)
    fitting = [row for row in variants if row["fits"]]
    best = max((row for row in fitting if row["top1"]), key=lambda row: row["top1"], default=None)
    print(f"\n{len(fitting)} of {len(variants)} fit (*)" + (f"; the most accurate: {best['variant']}" if best else ""))
    if unmeasured:
        print(f"not measured, for lack of time (--seconds {args.seconds:g}): {'; '.join(unmeasured)}")
    if args.json is not None:
        where = {"runtime": args.runtime, "precision": args.precision, "threads": args.threads}
        content = {
            **where,
            "image_size": args.image_size,
            "limits": limits,
            "unmeasured": unmeasured,
            "variants": variants,
        }
        write_json(content, args.json)
    if args.plot is not None:
        with replacing(make_parent(args.plot)) as partial:
            plot_choice(variants, limits, latency_label(args), partial)


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--max-ms", type=above_zero(1e9), help="milliseconds per image on this machine; measuring takes time"
    )
    parser.add_argument("--max-params", type=above_zero(1e15), help="parameters, such as 3e6")
    parser.add_argument("--max-macs", type=above_zero(1e15), help="MACs per image, such as 150e6")
    parser.add_argument("--model", action="append", help="consider this network only; may be repeated (default: all)")
    parser.add_argument("--image-size", type=whole(8, 1024), default=224, help="pixels (default: 224)")
    add_runtime(parser, RUNTIMES)
    parser.add_argument(
        "--repeats", type=whole(1, 10_000), default=10, help="the latency is the median of this many runs (default: 10)"
    )
    parser.add_argument(
        "--seconds", type=above_zero(1e9), default=150, help="prepare no further network after this time (default: 150)"
    )
    parser.add_argument("--json", metavar="PATH", help="also write the figures to this file")
    parser.add_argument("--plot", metavar="PATH", help="also draw top-1 against latency or MACs into this PNG")
    add_overwrite(parser)
    args = parser.parse_args()
    if all(getattr(args, option) is None for option in LIMITS):
        raise UserError("a limit must be given: --max-ms, --max-params or --max-macs")
    check_runtime(args)
    outputs = [*output_files("--json", args.json, ".json"), *output_files("--plot", args.plot, ".png")]
    check_outputs(outputs, {}, args.overwrite)
    return args


def latency_label(args):
    """Return the label of the axis with the latency."""
    names = {"onnx": "ONNX Runtime", "lite": "MindSpore Lite", "ncnn": "ncnn", "mindspore": "MindSpore"}
    threads = "" if args.threads is None else f", {args.threads} thread{'s' if args.threads > 1 else ''}"
    return f"latency (ms), {names[args.runtime]} {args.precision}{threads}"


def read_variants(args):
    """Return the variants of the networks that --model names, in order of their MACs.

    Each variant is a row of zoo.csv as a dict, with its name, and its MACs at --image-size.
    """
    from src.cost.count import count_macs
    from src.cost.zoo import read_zoo
    from src.models import NETWORKS, create_model

    for name in args.model or []:
        if name not in NETWORKS:
            raise UserError(f"--model {name}: is not one of {', '.join(NETWORKS)}{did_you_mean(name, NETWORKS)}")
    variants = [row for row in read_zoo() if not args.model or row["model"] in args.model]
    for row in variants:
        row["variant"] = f"{row['model']} {row['width']}" + (f", {row['groups']} groups" if row["groups"] else "")
        row["ms"] = None
        # zoo.csv has the MACs at 224 pixels only.
        if args.image_size != 224:
            config = config_of(row, args)
            row["macs"] = count_macs(create_model(config.model, config.data, 1000), args.image_size, 3)
    return sorted(variants, key=lambda row: row["macs"])


def config_of(row, args):
    model = {"name": row["model"], "width": row["width"], "groups": row["groups"]}
    return make_config({"model": model, "data": {"image_size": args.image_size}}, source="command line")


def fits(row, limits):
    """Return whether a variant meets all limits. An unmeasured variant does not meet a limit on latency."""
    return all(row[key] is not None and row[key] <= limit for key, limit in limits.items())


def measure(variants, limits, args, end):
    """Set `ms` of the variants that meet the other limits; return the names of the variants that time did not allow.

    `end` is the time of `perf_counter` after which no further network is prepared.
    """
    import numpy as np

    measured, unmeasured, prepared = [], [], []
    other_limits = {key: limit for key, limit in limits.items() if key != "ms"}
    image = np.zeros((1, args.image_size, args.image_size, 3), np.uint8)
    prepare, times = with_mindspore(args, image) if args.runtime == "mindspore" else with_files(args, image)
    for row in variants:
        if not fits(row, other_limits):
            continue
        if perf_counter() > end:
            unmeasured.append(row["variant"])
            continue
        prepared.append(prepare(row))
        measured.append(row)
    for row, time in zip(measured, times(prepared)):
        row["ms"] = time
    return unmeasured


def with_mindspore(args, image):
    """Return the function that compiles a variant in MindSpore, and the function that times compiled variants."""
    from src.cost.latency import median_ms, warm_up
    from src.kernels.convert import use_kernels
    from src.models import create_model

    def prepare(row):
        config = config_of(row, args)
        classifier = create_model(config.model, config.data, 1000)
        use_kernels(classifier, config.runtime)
        warm_up(classifier, image)
        return classifier

    return prepare, lambda networks: median_ms(networks, [image] * len(networks), args.repeats)


def with_files(args, image):
    """Return the function that exports a variant, and the function that times the files on their runtime."""
    from src.deploy.fresh import fresh_file, target_of
    from src.deploy.runtimes.timing import RUNS_PER_TURN, median_ms
    from src.models import create_model

    target = target_of(args.runtime, args.precision, args.lite_python)

    def prepare(row):
        config = config_of(row, args)
        return fresh_file(row["variant"], lambda: create_model(config.model, config.data, 1000), image, target)

    def times(paths):
        rounds = -(-args.repeats // RUNS_PER_TURN)
        with target.process() as runner:
            return median_ms([(path, image) for path in paths], runner, rounds, args.threads)

    return prepare, times


def print_variants(variants):
    width = max(len(row["variant"]) for row in variants)
    print(f"   {'network':<{width}}  {'params':>9}  {'MACs':>11}  {'top-1':>5}  {'ms':>6}")
    for row in variants:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        latency = "-" if row["ms"] is None else f"{row['ms']:.2f}"
        mark = "*" if row["fits"] else " "
        print(f"{mark}  {row['variant']:<{width}}  {row['params']:>9,}  {row['macs']:>11,}  {top1:>5}  {latency:>6}")


if __name__ == "__main__":
    run(main)
