"""Count what a network costs, layer by layer: python tools/cost.py --model shufflenet_v1 --groups 3 --plot cost.png

Instead of --model, --config takes the network from a config file, and --all prints the totals of every variant.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import argparse
import itertools

from src.arguments import above_zero, existing, whole
from src.config.load import load_config, make_config
from src.config.schema import MOST_CLASSES
from src.errors import ArgumentParser, UserError, run
from src.files import make_parent, replacing, write_json
from src.outputs import add_overwrite, check_outputs, output_files

MODEL_ONLY = ("width", "groups", "layout")


def main():
    args = parse()
    if args.all:
        configs = all_variants(args)
    elif args.config:
        configs = [load_config(args.config)]
    else:
        configs = [make_config(tree_of(args), source="command line")]

    from src.cost.figures import plot_costs
    from src.runtime.device import use_device

    use_device(configs[0].runtime)
    if args.all:
        variants = [cost_of(config) for config in configs]
        print_variants(variants)
        content, rows, title = {"variants": variants}, variants, f"{size_of(args)} pixels"
    else:
        content = cost_of(configs[0], layers=True)
        print_layers(content["layers"])
        print_totals(content)
        rows, title = content["blocks"], f"{content['variant']}, {content['image_size']} pixels"
    if args.json is not None:
        write_json(content, args.json)
    if args.plot is not None:
        with replacing(make_parent(args.plot)) as partial:
            plot_costs(rows, "variant" if args.all else "block", title, partial)


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--model", help="a network, such as shufflenet_v2")
    chosen.add_argument(
        "--config",
        type=existing,
        metavar="PATH",
        help="a config file: its network, image size, channels and classes",
    )
    chosen.add_argument("--all", action="store_true", help="count every variant of every network, totals only")
    parser.add_argument("--width", type=above_zero(100), help="width multiplier (default: 1.0)")
    parser.add_argument(
        "--groups", type=whole(1, 1000), help="shufflenet_v1 only: groups of its 1x1 convolutions (default: 3)"
    )
    parser.add_argument("--layout", help="shufflenet_v2 only: authors (default) or equal_split")
    parser.add_argument("--image-size", type=whole(8, 1024), help="pixels (default: 224)")
    parser.add_argument("--classes", type=whole(2, MOST_CLASSES), help="outputs (default: 1000)")
    parser.add_argument("--json", metavar="PATH", help="also write all figures to this file")
    parser.add_argument("--plot", metavar="PATH", help="also draw MACs, parameters and bytes per block into this PNG")
    add_overwrite(parser)
    args = parser.parse_args()
    if not args.model:
        for key in (*MODEL_ONLY, *(("image_size", "classes") if args.config else ())):
            if getattr(args, key) is not None:
                raise UserError(f"--{key.replace('_', '-')}: cannot be used with {'--all' if args.all else '--config'}")
    outputs = [*output_files("--json", args.json, ".json"), *output_files("--plot", args.plot, ".png")]
    check_outputs(outputs, {"--config": args.config}, args.overwrite)
    return args


def size_of(args):
    return 224 if args.image_size is None else args.image_size


def tree_of(args, **model):
    """Return the config, as a dict, of the network that the arguments choose; `model` sets or replaces model keys."""
    given = {key: getattr(args, key) for key in MODEL_ONLY if getattr(args, key) is not None}
    model = {"name": args.model, "classes": args.classes, **given, **model}
    return {"model": model, "data": {"image_size": size_of(args)}}


def all_variants(args):
    """Return the configs of every network at every width, with every value of the network's own options."""
    from src.models import NETWORKS

    configs = []
    for name, network in NETWORKS.items():
        groups = network.stage2_channels if name == "shufflenet_v1" else [None]
        layouts = network.options["layout"].allowed if name == "shufflenet_v2" else [None]
        for count, layout, width in itertools.product(groups, layouts, network.variants):
            tree = tree_of(args, name=name, width=width, groups=count, layout=layout)
            configs.append(make_config(tree, source="command line"))
    return configs


def cost_of(config, layers=False):
    """Return the costs of the config's network as a dict; with `layers` also the costs of each block and layer."""
    from src.cost.count import BYTES, by_block, count_params, guidelines, profile
    from src.models import create_model

    model, data = config.model, config.data
    classifier = create_model(model, data, model.classes or 1000)
    rows = profile(classifier, data.image_size, data.channels)
    options = [f"{model.groups} groups"] if model.groups else []
    options += [model.layout] if model.layout else []
    costs = {
        "variant": ", ".join([f"{model.name} {model.width}", *options]),
        "model": model.name,
        "width": model.width,
        "groups": model.groups,
        "layout": model.layout,
        "image_size": data.image_size,
        "channels": data.channels,
        "classes": model.classes or 1000,
        "params": count_params(classifier),
        "macs": sum(row.macs for row in rows),
        "bytes": sum(row.accesses for row in rows) * BYTES,
        "guidelines": guidelines(classifier, rows),
    }
    if layers:
        costs["blocks"] = by_block(classifier, rows)
        costs["layers"] = [row.to_dict() for row in rows]
    return costs


def print_layers(rows):
    name, kind = (max(len(row[key]) for row in rows) for key in ("name", "type"))
    print(f"{'layer':<{name}}  {'type':<{kind}}  {'output':>14}  {'params':>10}  {'MACs':>12}  {'bytes':>12}")
    for row in rows:
        shape = "x".join(map(str, row["output"]))
        counts = f"{row['params']:>10,}  {row['macs']:>12,}  {row['bytes']:>12,}"
        print(f"{row['name']:<{name}}  {row['type']:<{kind}}  {shape:>14}  {counts}")


def print_totals(costs):
    found = costs["guidelines"]
    groups = ", ".join(f"{count} with {number}" for number, count in found["group_counts"].items())
    shares = found["access_shares"]
    kernels = "-"
    if found["kernels_max"]:
        kernels = f"{found['kernels_mean']:.2f} convolutions per block, at most {found['kernels_max']}"
    lines = {
        "network": f"{costs['variant']}, {costs['channels']}x{costs['image_size']}x{costs['image_size']}",
        "classes": costs["classes"],
        "parameters": f"{costs['params']:,}",
        "MACs": f"{costs['macs']:,}",
        "bytes moved": f"{costs['bytes']:,} (float32; each operation reads its inputs and writes its output)",
        "memory access": f"{found['memory_access']:,} elements, convolutions only",
        "G1 balance": f"{found['balance']:.2f} (in:out channels of 1x1 convolutions, by MACs; 1 is best)",
        "G1 access": f"{found['access_to_bound']:.2f} times the lower bound of the paper's Eq. 1 (1x1 convolutions)",
        "G2 MACs": f"{found['depthwise_macs']:.1%} depthwise, {found['grouped_macs']:.1%} in other groups",
        "G2 groups": f"{groups} (convolutions per number of groups, without depthwise)",
        "G3 kernels": kernels,
        "G4 access": ", ".join(f"{share:.1%} {kind}" for kind, share in shares.items()) if shares else "-",
    }
    print()
    for name, value in lines.items():
        print(f"{name:<13}  {value}")


def print_variants(variants):
    width = max(len(costs["variant"]) for costs in variants)
    heads = ("params", "MACs", "bytes", "balance", "access", "depthwise", "grouped", "kernels", "element-wise")
    print(f"{'network':<{width}}  {heads[0]:>9}  {heads[1]:>11}  {heads[2]:>11}  {'  '.join(heads[3:])}")
    for costs in variants:
        found = costs["guidelines"]
        print(
            f"{costs['variant']:<{width}}  {costs['params']:>9,}  {costs['macs']:>11,}  {costs['bytes']:>11,}"
            f"  {found['balance']:>7.2f}  {found['access_to_bound']:>6.2f}  {found['depthwise_macs']:>9.1%}"
            f"  {found['grouped_macs']:>7.1%}  {found['kernels_mean']:>7.2f}"
            f"  {found['access_shares']['element-wise']:>12.1%}"
        )


if __name__ == "__main__":
    run(main)
