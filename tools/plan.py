"""What training would take on devices that are not here, by arithmetic: docs/scale.md explains it.

python tools/plan.py --config configs/mobilenet_v2/imagenet.yaml --device ascend910 --devices 8
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.config.load import load_config
from src.cost.count import count_params, profile, size
from src.errors import ArgumentParser, UserError, did_you_mean, run
from src.models import create_model
from src.runtime.device import use_device
from src.training.optimizer import create_optimizer

# Of the vendors' data sheets: half-precision operations a second, bytes a second to and from memory, bytes of memory.
DEVICES = {
    "ascend910": (256e12, 1.2e12, 32e9),
    "a100": (312e12, 1.555e12, 40e9),
    "v100": (125e12, 0.9e12, 32e9),
}
COMPUTE_SHARE, MEMORY_SHARE = 0.3, 0.6  # of these peaks that small convolutions and element-wise operations reach
LINK = 12.5e9  # bytes a second between devices: 100 Gbit/s
HALF, FLOAT = 2, 4  # bytes
IMAGES = 1_281_167  # of ImageNet's training split, an epoch
# Of an image: MACs, bytes moved, microseconds; of devices: images a second of one and of N; days of the run; bytes of
# weights, gradients and state, and of the maps of a batch; the largest batch; milliseconds to average gradients.
HEADS = ("batch", "M MACs", "MB moved", "us comp.", "us mem.", "img/s 1", "img/s N", "days", "GB fixed", "GB maps")
HEADS += ("largest", "ms sent")


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, action="append", metavar="PATH", help="may be repeated")
    parser.add_argument("--device", default="ascend910", help=f"{', '.join(DEVICES)} (default: ascend910)")
    parser.add_argument("--devices", type=int, default=8, help="how many train together (default: 8)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"an epoch (default: ImageNet's {IMAGES:,})")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings for all of the configs")
    args = parser.parse_intermixed_args()
    if args.device not in DEVICES:
        raise UserError(
            f"--device {args.device}: is not one of {', '.join(DEVICES)}{did_you_mean(args.device, DEVICES)}"
        )
    if args.devices < 1 or args.images < 1:
        raise UserError("--devices and --images must be at least 1")
    configs = {path: load_config(path, args.overrides) for path in args.config}
    use_device(next(iter(configs.values())).runtime)
    operations, traffic, memory = DEVICES[args.device]
    print(
        f"{args.devices} x {args.device}: {COMPUTE_SHARE:.0%} of {operations / 1e12:.0f} T operations/s, "
        f"{MEMORY_SHARE:.0%} of {traffic / 1e9:,.0f} GB/s, {memory / 1e9:.0f} GB; an upper bound, not run here\n"
    )
    print(f"{'network':<23}" + "".join(f"{head:>10}" for head in HEADS))
    for config in configs.values():
        print_plan(config, plan(config, args.devices, args.images, operations, traffic, memory))


def plan(config, devices, images, operations, traffic, memory):
    """Return the figures of training with `config`, as a dict."""
    classifier = create_model(config.model, config.data, config.model.classes or 1000)
    parameters = count_params(classifier)
    state = sum(parameter.size for parameter in create_optimizer(config, classifier).state)
    sizes = config.train.image_sizes or [config.data.image_size]
    runs = [profile(classifier, side, config.data.channels) for side in sizes]
    macs = sum(row.macs for rows in runs for row in rows) / len(runs)
    # Backward does each product twice, for inputs and for weights, and moves each map in and out twice.
    moved = 3 * HALF * sum(row.accesses - row.params for rows in runs for row in rows) / len(runs)
    compute, transfer = 3 * 2 * macs / (operations * COMPUTE_SHARE), moved / (traffic * MEMORY_SHARE)
    kept = max(HALF * sum(size(row.output) for row in rows) for rows in runs)
    fixed = FLOAT * (2 * parameters + state)
    return {
        "macs": macs,
        "moved": moved,
        "compute": compute,
        "transfer": transfer,
        "rate": 1 / max(compute, transfer),
        "days": config.train.epochs * images * max(compute, transfer) / devices / 86400,
        "fixed": fixed,
        "activations": config.train.batch_size * kept,
        "largest": int((memory - fixed) / kept),
        "sent": 2 * (devices - 1) / devices * FLOAT * parameters / LINK,
        "devices": devices,
    }


def print_plan(config, found):
    name = f"{config.model.name} {config.model.width}"
    print(
        f"{name:<23}{config.train.batch_size:10}{found['macs'] / 1e6:10.1f}{found['moved'] / 1e6:10.1f}"
        f"{found['compute'] * 1e6:10.1f}{found['transfer'] * 1e6:10.1f}{found['rate']:10,.0f}"
        f"{found['rate'] * found['devices']:10,.0f}{found['days']:10.2f}{found['fixed'] / 1e9:10.2f}"
        f"{found['activations'] / 1e9:10.2f}{found['largest']:10,}{found['sent'] * 1e3:10.1f}"
    )


if __name__ == "__main__":
    run(main)
