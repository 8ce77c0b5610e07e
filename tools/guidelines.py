"""Measure ShuffleNetV2's four guidelines on this device: python tools/guidelines.py --plot guidelines.png

Repeats tables 1 to 4 of https://arxiv.org/abs/1807.11164 with batch 1. Each network has 10 equal blocks. The networks
of a table have about the same MACs and differ in one respect. Speeds are relative to the table's first line.
--runtime onnx, lite or ncnn exports the networks, and keeps the files in ~/.cache/pocketspore; mindspore compiles them.
The last column is the paper's relative speed on an ARM core. It comes from columns x1 of tables 1 and 2 and from c=64
of tables 3 and 4. Tables 1 to 3 have feature maps of 56x56.
G1: pairs of 1x1 convolutions, from c1 channels to c2 and back. G2: grouped 1x1 convolutions.
G3: 1x1 convolutions in series or in parallel. The parallel outputs are added; the paper does not say how it joins them.
G4: ResNet's bottleneck (1x1, 3x3, 1x1), with and without ReLU and shortcut. The inner width is a quarter of the
channels; the paper does not give it.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import argparse

from src.arguments import whole
from src.config.load import make_config
from src.cost.runtime_options import add_runtime, check_runtime
from src.errors import ArgumentParser, run
from src.files import make_parent, replacing, write_json
from src.outputs import add_overwrite, check_outputs, output_files

RUNTIMES = ("onnx", "lite", "ncnn", "mindspore")
TITLES = {
    "G1": "input to output channels",
    "G2": "groups",
    "G3": "fragments",
    "G4": "element-wise operations",
}
# The paper's images per second on ARM, in the order of the lines that `benchmarks` returns.
PAPER = {
    "G1": (76.2, 72.9, 69.1, 57.6),
    "G2": (40.0, 35.0, 32.9, 27.8),
    "G3": (40.2, 38.6, 38.4, 33.4, 35.0),
    "G4": (16.9, 18.8, 18.2, 20.2),
}


def main():
    args = parse()
    runtime = make_config({"runtime": {"device": args.device or "cpu"}}, source="command line").runtime

    from src.cost.figures import plot_guidelines
    from src.runtime.device import use_device

    use_device(runtime)
    lines = measure(args, runtime)
    width = max(len(line["line"]) for line in lines)
    maps = f"feature maps of {args.image_size}x{args.image_size}"
    print(f"{args.runtime} {args.precision}, {maps}, batch 1, median of {args.repeats} runs")
    for guideline, title in TITLES.items():
        print(f"\n{f'{guideline} {title}':<{width}}  {'MACs':>11}  {'ms':>7}  {'images/s':>8}  relative  paper (ARM)")
        for line in (line for line in lines if line["guideline"] == guideline):
            print(
                f"{line['line']:<{width}}  {line['macs']:>11,}  {line['ms']:>7.2f}  {line['images_per_second']:>8.1f}"
                f"  {line['relative']:>8.2f}  {line['paper_relative']:>11.2f}"
            )
    if args.json is not None:
        where = {"runtime": args.runtime, "precision": args.precision, "threads": args.threads}
        write_json({**where, "image_size": args.image_size, "repeats": args.repeats, "lines": lines}, args.json)
    if args.plot is not None:
        with replacing(make_parent(args.plot)) as partial:
            plot_guidelines(lines, TITLES, partial)


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--channels", type=whole(8, 512), default=64, help="of the first line; table 1 has half (default: 64)"
    )
    parser.add_argument("--image-size", type=whole(1, 256), default=56, help="side of the feature maps (default: 56)")
    parser.add_argument(
        "--repeats", type=whole(1, 10_000), default=30, help="each time is the median of this many runs (default: 30)"
    )
    add_runtime(parser, RUNTIMES)
    parser.add_argument("--json", metavar="PATH", help="also write the figures to this file")
    parser.add_argument("--plot", metavar="PATH", help="also draw the relative speeds into this PNG")
    add_overwrite(parser)
    args = parser.parse_args()
    check_runtime(args)
    outputs = [*output_files("--json", args.json, ".json"), *output_files("--plot", args.plot, ".png")]
    check_outputs(outputs, {}, args.overwrite)
    return args


def measure(args, runtime):
    """Return a dict per line: guideline, label, MACs, ms, images per second, relative speed here and in the paper."""
    import numpy as np

    from src.cost.guidelines import benchmarks, stacked_macs

    lines = []
    for guideline, rows in benchmarks(args.channels).items():
        macs = [stacked_macs(row.network, args.image_size) for row in rows]
        inputs = [np.ones((1, row.channels, args.image_size, args.image_size), np.float32) for row in rows]
        if args.runtime == "mindspore":
            times = times_in_mindspore(rows, inputs, args.repeats, runtime)
        else:
            times = times_of_files(guideline, rows, inputs, args)
        for row, count, time, paper in zip(rows, macs, times, PAPER[guideline]):
            lines.append(
                {
                    "guideline": guideline,
                    "line": row.label,
                    "macs": count,
                    "ms": time,
                    "images_per_second": 1000 / time,
                    "relative": times[0] / time,
                    "paper_relative": paper / PAPER[guideline][0],
                }
            )
    return lines


def times_in_mindspore(rows, inputs, repeats, runtime):
    """Return the milliseconds of each network, compiled in MindSpore with the settings `runtime`."""
    from src.cost.latency import median_ms, warm_up
    from src.kernels.convert import use_kernels

    for row, blank in zip(rows, inputs):
        use_kernels(row.network, runtime)
        warm_up(row.network, blank)
    return median_ms([row.network for row in rows], inputs, repeats)


def times_of_files(guideline, rows, inputs, args):
    """Return the milliseconds of each network, exported to a file for the runtime that the options name."""
    from src.deploy.fresh import fresh_file, target_of
    from src.deploy.runtimes.timing import RUNS_PER_TURN, median_ms

    target = target_of(args.runtime, args.precision, args.lite_python)
    paths = [
        fresh_file(f"{guideline} {i} {row.channels}", lambda row=row: row.network, blank, target)
        for i, (row, blank) in enumerate(zip(rows, inputs))
    ]
    with target.process() as runner:
        rounds = -(-args.repeats // RUNS_PER_TURN)
        return median_ms(list(zip(paths, inputs)), runner, rounds, args.threads)


if __name__ == "__main__":
    run(main)
