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
from src.cost.devices import COMPUTE_SHARE, DEVICES, MEMORY_SHARE
from src.errors import ArgumentParser, UserError, did_you_mean, run

IMAGES = 1_281_167  # training images of ImageNet, so images per epoch
# Per image: MACs, bytes moved, microseconds of computation and of memory traffic. Images per second of one device and
# of all N. Days of the run. Bytes of weights, gradients and optimizer state. Bytes of the feature maps of a batch.
# The largest batch that fits. Milliseconds to average the gradients.
HEADS = ("batch", "M MACs", "MB moved", "us comp.", "us mem.", "img/s 1", "img/s N", "days", "GB fixed", "GB maps")
HEADS += ("largest", "ms sent")


def main():
    args = parse()
    configs = {path: load_config(path, args.overrides) for path in args.config}

    from src.cost.plan import plan
    from src.models import create_model
    from src.runtime.device import use_device
    from src.training.optimizer import create_optimizer

    use_device(next(iter(configs.values())).runtime)
    device = DEVICES[args.device]
    print(
        f"{args.devices} x {args.device}: {COMPUTE_SHARE:.0%} of {device.operations / 1e12:.0f} T operations/s, "
        f"{MEMORY_SHARE:.0%} of {device.traffic / 1e9:,.0f} GB/s, {device.memory / 1e9:.0f} GB; "
        "speeds are upper bounds\n"
    )
    print(f"{'network':<23}" + "".join(f"{head:>10}" for head in HEADS))
    for config in configs.values():
        classifier = create_model(config.model, config.data, config.model.classes or 1000)
        state = sum(parameter.size for parameter in create_optimizer(config, classifier).state)
        print_plan(config, plan(config, classifier, state, device, args.devices, args.images))


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
