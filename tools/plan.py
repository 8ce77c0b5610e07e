"""Estimate by arithmetic what training takes on devices that you do not have; docs/scale.md explains the figures.

python tools/plan.py --config configs/mobilenet_v2/imagenet.yaml --device ascend910 --devices 8
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import argparse

from src.arguments import existing, whole
from src.config.load import load_config
from src.errors import ArgumentParser, UserError, did_you_mean, run

# From the vendors' data sheets: half-precision operations per second, bytes per second to and from memory, bytes of
# memory.
DEVICES = {
    "ascend910": (256e12, 1.2e12, 32e9),
    "a100": (312e12, 1.555e12, 40e9),
    "v100": (125e12, 0.9e12, 32e9),
}
# Small convolutions and element-wise operations reach only these shares of the peaks.
COMPUTE_SHARE, MEMORY_SHARE = 0.3, 0.6
LINK = 12.5e9  # bytes per second between devices: 100 Gbit/s
HALF, FLOAT = 2, 4  # bytes
IMAGES = 1_281_167  # training images of ImageNet, so images per epoch
# Per image: MACs, bytes moved, microseconds of computation and of memory traffic. Images per second of one device and
# of all N. Days of the run. Bytes of weights, gradients and optimizer state. Bytes of the feature maps of a batch.
# The largest batch that fits. Milliseconds to average the gradients.
HEADS = ("batch", "M MACs", "MB moved", "us comp.", "us mem.", "img/s 1", "img/s N", "days", "GB fixed", "GB maps")
HEADS += ("largest", "ms sent")


def main():
    args = parse()
    configs = {path: load_config(path, args.overrides) for path in args.config}

    from src.runtime.device import use_device

    use_device(next(iter(configs.values())).runtime)
    operations, traffic, memory = DEVICES[args.device]
    print(
        f"{args.devices} x {args.device}: {COMPUTE_SHARE:.0%} of {operations / 1e12:.0f} T operations/s, "
        f"{MEMORY_SHARE:.0%} of {traffic / 1e9:,.0f} GB/s, {memory / 1e9:.0f} GB; speeds are upper bounds\n"
    )
    print(f"{'network':<23}" + "".join(f"{head:>10}" for head in HEADS))
    for config in configs.values():
        print_plan(config, plan(config, args.devices, args.images, operations, traffic, memory))


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config",
        type=existing,
        required=True,
        action="append",
        metavar="PATH",
        help="YAML file of settings; may be repeated",
    )
    parser.add_argument("--device", default="ascend910", help=f"{', '.join(DEVICES)} (default: ascend910)")
    parser.add_argument(
        "--devices", type=whole(1, 1_000_000), default=8, help="devices that train together (default: 8)"
    )
    parser.add_argument(
        "--images", type=whole(1, 10**12), default=IMAGES, help=f"images per epoch (default: ImageNet's {IMAGES:,})"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the files'")
    args = parser.parse_intermixed_args()
    if args.device not in DEVICES:
        raise UserError(
            f"--device {args.device}: is not one of {', '.join(DEVICES)}{did_you_mean(args.device, DEVICES)}"
        )
    return args


def plan(config, devices, images, operations, traffic, memory):
    """Return the figures of training with `config`, as a dict; the last three arguments are a row of DEVICES."""
    from src.cost.count import count_params, profile
    from src.models import create_model
    from src.models.declaration import elements
    from src.training.optimizer import create_optimizer

    classifier = create_model(config.model, config.data, config.model.classes or 1000)
    parameters = count_params(classifier)
    state = sum(parameter.size for parameter in create_optimizer(config, classifier).state)
    sizes = config.train.image_sizes or [config.data.image_size]
    runs = [profile(classifier, side, config.data.channels) for side in sizes]
    macs = sum(row.macs for rows in runs for row in rows) / len(runs)
    # The backward pass computes each product twice: once for the inputs' gradients and once for the weights' gradients.
    # It also reads and writes each feature map twice.
    moved = 3 * HALF * sum(row.accesses - row.params for rows in runs for row in rows) / len(runs)
    compute, transfer = 3 * 2 * macs / (operations * COMPUTE_SHARE), moved / (traffic * MEMORY_SHARE)
    kept = max(HALF * sum(elements(row.output) for row in rows) for rows in runs)
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
