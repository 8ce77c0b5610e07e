"""Compare this project's exported files with plainly exported mindcv networks, by their time on MindSpore Lite.

python benchmarks/lite_against_mindcv.py shufflenet_v2:0.5 ghostnet:1.0

Both files have 1000 classes and take an image of 224x224, as uint8 pixels or as a normalised tensor. The plain file is
what `ms.export` writes, changed only so that Lite can read it: BatchNorm, shuffles and slices stay as they are. The
weights are random, from the same seed for both.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mindspore as ms
import numpy as np

from src.arguments import whole
from src.config.load import make_config
from src.deploy.export import Deployed
from src.deploy.graph.mindir import read_mindir, write_mindir
from src.deploy.graph.passes import optimize, pool_means
from src.deploy.options import INPUTS, Options
from src.deploy.runtimes.lite import Lite, need_lite
from src.deploy.runtimes.timing import measure
from src.errors import ArgumentParser, UserError, did_you_mean, run
from src.files import write_json
from src.models import create_model
from src.outputs import add_overwrite, check_outputs, output_files

PLAIN = {  # network:width, and the name in mindcv
    "shufflenet_v1:0.5": "shufflenet_v1_g3_05",
    "shufflenet_v1:1.0": "shufflenet_v1_g3_10",
    "shufflenet_v2:0.5": "shufflenet_v2_x0_5",
    "shufflenet_v2:1.0": "shufflenet_v2_x1_0",
    "mobilenet_v1:0.25": "mobilenet_v1_025",
    "mobilenet_v1:1.0": "mobilenet_v1_100",
    "mobilenet_v2:0.35": "mobilenet_v2_035_224",
    "mobilenet_v2:1.0": "mobilenet_v2_100",
    "mobilenet_v3_small:0.75": "mobilenet_v3_small_075",
    "mobilenet_v3_small:1.0": "mobilenet_v3_small_100",
    "mobilenet_v3_large:0.75": "mobilenet_v3_large_075",
    "mobilenet_v3_large:1.0": "mobilenet_v3_large_100",
    "ghostnet:0.5": "ghostnet_050",
    "ghostnet:1.0": "ghostnet_100",
    "mnasnet:0.5": "mnasnet_050",
    "mnasnet:1.0": "mnasnet_100",
}


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "networks", nargs="*", metavar="NAME:WIDTH", help="default: all networks and widths that mindcv has too"
    )
    parser.add_argument("--input", choices=INPUTS, default="image", help="input of both files, as in export.py")
    parser.add_argument("--threads", type=whole(1, 1024), default=1, help="threads of MindSpore Lite (default: 1)")
    parser.add_argument("--rounds", type=whole(1, 10_000), default=20, help="rounds of four timed runs (default: 20)")
    parser.add_argument("--lite-python", metavar="PATH", help="the Python that has MindSpore Lite")
    parser.add_argument("--json", metavar="PATH", help="also write the figures to this file")
    add_overwrite(parser)
    args = parser.parse_args()
    check_outputs(output_files("--json", args.json, ".json"), {}, args.overwrite)
    names = args.networks or list(PLAIN)
    for name in names:
        if name not in PLAIN:
            raise UserError(f"{name}: is not one of {', '.join(PLAIN)}{did_you_mean(name, PLAIN)}")
    python = need_lite(args.lite_python)

    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    if args.input == "tensor":
        image = generator.normal(size=(1, 3, 224, 224)).astype(np.float32)
    options = Options(format="ms", input=args.input, logits=True)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for name in names:
            network, _, width = name.partition(":")
            ours = {"name": network, "width": float(width)}
            for kind, model in (("ours", ours), ("plain", {"name": f"mindcv/{PLAIN[name]}"})):
                lite = Lite(python)
                path = Path(folder) / f"{network}-{width}-{kind}.ms"
                export(model, image, options, kind == "ours", path, lite)
                jobs.append((path, lite, image))
        rows = measure(jobs, args.rounds, args.threads)
    width = max(len(name) for name in names)
    print(f"{'network':<{width}}  ours ms  plain ms  ratio")
    for name, ours, plain in zip(names, rows[::2], rows[1::2]):
        # The ratio of each round's best times: other load on the machine affects both files alike.
        ratio = float(np.median(np.divide(ours["best_ms"], plain["best_ms"])))
        figures[name] = {"ours_ms": ours["median_ms"], "plain_ms": plain["median_ms"], "ratio": ratio}
        print(f"{name:<{width}}  {ours['median_ms']:>7.2f}  {plain['median_ms']:>8.2f}  {ratio:>5.2f}", flush=True)
    if args.json is not None:
        write_json({"input": args.input, "threads": args.threads, "rounds": args.rounds, "results": figures}, args.json)


def export(model, image, options, optimized, path, lite):
    """Write the .ms file of a network with random weights."""
    ms.set_seed(0)
    config = make_config({"model": model, "data": {"image_size": 224}}, source="command line")
    network = Deployed(create_model(config.model, config.data, 1000), options).set_train(False)
    source = path.with_suffix(".mindir")
    ms.export(network, ms.Tensor(image), file_name=str(source), file_format="MINDIR")
    graph = read_mindir(source)
    if optimized:
        optimize(graph)
        pool_means(graph)
    source.unlink()
    write_mindir(graph, source)
    lite.convert(source, path)


if __name__ == "__main__":
    run(main)
