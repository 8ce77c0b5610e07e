"""Which networks fit: python tools/choose.py --max-ms 20 --image-size 224 --plot choice.png

Parameters, MACs, the authors' ImageNet top-1 and, with --max-ms, the latency of one image on this machine (compiled,
batch 1, preprocessing included). Networks that another limit rules out are not measured, and none is compiled
once --seconds have passed: those with the fewest MACs come first. Then all compiled ones take turns.
"""

import argparse
import math
import sys
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from src.config.load import make_config
from src.cost.count import count_macs
from src.cost.figures import plot_choice
from src.cost.latency import median_ms, warm_up
from src.cost.zoo import read_zoo
from src.errors import ArgumentParser, UserError, did_you_mean, run
from src.files import make_parent, write_json
from src.kernels.convert import use_kernels
from src.models import NETWORKS, create_model
from src.runtime.device import use_device

LIMITS = {"max_ms": "ms", "max_params": "params", "max_macs": "macs"}


def main():
    args = parse()
    end = perf_counter() + args.seconds
    limits = {key: getattr(args, option) for option, key in LIMITS.items() if getattr(args, option) is not None}
    use_device(make_config({"runtime": {"device": args.device}}, source="command line").runtime)
    variants = [row for row in read_zoo() if not args.model or row["model"] in args.model]
    for row in variants:
        row["variant"] = f"{row['model']} {row['width']}" + (f", {row['groups']} groups" if row["groups"] else "")
        row["ms"] = None
        # The table holds for 224 pixels.
        if args.image_size != 224:
            config = config_of(row, args)
            row["macs"] = count_macs(create_model(config.model, config.data, 1000), args.image_size, 3)
    variants.sort(key=lambda row: row["macs"])
    unmeasured = measure(variants, limits, args, end) if "ms" in limits else []
    for row in variants:
        row["fits"] = fits(row, limits)
    print_variants(variants)
    fitting = [row for row in variants if row["fits"]]
    best = max((row for row in fitting if row["top1"]), key=lambda row: row["top1"], default=None)
    print(f"\n{len(fitting)} of {len(variants)} fit (*)" + (f"; the most accurate: {best['variant']}" if best else ""))
    if unmeasured:
        print(f"not measured, for lack of time (--seconds {args.seconds:g}): {'; '.join(unmeasured)}")
    if args.json:
        content = {"image_size": args.image_size, "limits": limits, "unmeasured": unmeasured, "variants": variants}
        write_json(content, args.json)
    if args.plot:
        plot_choice(variants, limits, make_parent(args.plot))


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--max-ms", type=float, help="milliseconds an image on this machine; measured, so it takes time"
    )
    parser.add_argument("--max-params", type=float, help="parameters, such as 3e6")
    parser.add_argument("--max-macs", type=float, help="MACs an image, such as 150e6")
    parser.add_argument("--model", action="append", help="this network only; may be repeated (default: all)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--repeats", type=int, default=10, help="runs whose median is the latency (default: 10)")
    parser.add_argument(
        "--seconds", type=float, default=75, help="compile no further network after these (default: 75)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, gpu or ascend")
    parser.add_argument("--json", metavar="PATH", help="also write the figures there")
    parser.add_argument("--plot", metavar="PATH", help="also draw top-1 against latency or MACs into this PNG")
    args = parser.parse_args()
    given = [option for option in (*LIMITS, "seconds", "repeats") if getattr(args, option) is not None]
    for option in given:
        if not 0 < getattr(args, option) < math.inf:
            raise UserError(f"--{option.replace('_', '-')} {getattr(args, option):g}: must be above 0")
    if not set(given) & set(LIMITS):
        raise UserError("a limit must be given: --max-ms, --max-params or --max-macs")
    for name in args.model or []:
        if name not in NETWORKS:
            raise UserError(f"--model {name}: is not one of {', '.join(NETWORKS)}{did_you_mean(name, NETWORKS)}")
    if args.plot and Path(args.plot).suffix != ".png":
        raise UserError(f"--plot {args.plot}: must end with .png")
    return args


def config_of(row, args):
    model = {"name": row["model"], "width": row["width"], "groups": row["groups"]}
    return make_config({"model": model, "data": {"image_size": args.image_size}}, source="command line")


def fits(row, limits):
    """Tell whether no limit is passed; a variant that was not measured does not fit a limit on latency."""
    return all(row[key] is not None and row[key] <= limit for key, limit in limits.items())


def measure(variants, limits, args, end):
    """Set the `ms` of variants that pass the other limits until the clock's `end`; return the names of those left."""
    measured, networks, unmeasured = [], [], []
    others = {key: limit for key, limit in limits.items() if key != "ms"}
    image = np.zeros((1, args.image_size, args.image_size, 3), np.uint8)
    for row in variants:
        if not fits(row, others):
            continue
        if perf_counter() > end:
            unmeasured.append(row["variant"])
            continue
        config = config_of(row, args)
        classifier = create_model(config.model, config.data, 1000)
        use_kernels(classifier, config.runtime)
        warm_up(classifier, image)
        measured.append(row)
        networks.append(classifier)
    for row, time in zip(measured, median_ms(networks, [image] * len(networks), args.repeats)):
        row["ms"] = time
    return unmeasured


def print_variants(variants):
    width = max(len(row["variant"]) for row in variants)
    print(f"   {'network':<{width}}  {'params':>9}  {'MACs':>11}  {'top-1':>5}  {'ms':>6}")
    for row in variants:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        latency = "-" if row["ms"] is None else f"{row['ms']:.1f}"
        mark = "*" if row["fits"] else " "
        print(f"{mark}  {row['variant']:<{width}}  {row['params']:>9,}  {row['macs']:>11,}  {top1:>5}  {latency:>6}")


if __name__ == "__main__":
    run(main)
