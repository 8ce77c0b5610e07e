"""Compare int8 with float32 in ONNX Runtime: size and milliseconds per image of each family, with random weights.

python benchmarks/int8.py --image-size 224
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from src.arguments import whole
from src.config.load import make_config
from src.cost.zoo import read_zoo
from src.deploy.fresh import fresh_file, target_of
from src.deploy.runtimes.timing import median_ms
from src.errors import ArgumentParser, run
from src.files import write_json
from src.models import create_model
from src.outputs import add_overwrite, check_outputs, output_files

PRECISIONS = ("float32", "int8")


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=whole(8, 1024), default=224, help="pixels (default: 224)")
    parser.add_argument("--threads", type=whole(1, 1024), default=1, help="threads of ONNX Runtime (default: 1)")
    parser.add_argument("--rounds", type=whole(1, 10_000), default=8, help="rounds of five timed runs (default: 8)")
    parser.add_argument("--json", metavar="PATH", help="also write the figures to this file")
    add_overwrite(parser)
    args = parser.parse_args()
    check_outputs(output_files("--json", args.json, ".json"), {}, args.overwrite)

    image = np.zeros((1, args.image_size, args.image_size, 3), np.uint8)
    targets = [target_of("onnx", precision) for precision in PRECISIONS]
    rows, files = [], []
    for row in (row for row in read_zoo() if row["width"] == 1.0):
        name = f"{row['model']} 1.0" + (f", {row['groups']} groups" if row["groups"] else "")
        model = {"name": row["model"], "groups": row["groups"]}
        config = make_config({"model": model, "data": {"image_size": args.image_size}}, source="command line")
        paths = [fresh_file(name, lambda c=config: create_model(c.model, c.data, 1000), image, to) for to in targets]
        rows.append({"network": name, "sizes": [path.stat().st_size for path in paths]})
        files += paths
    with targets[0].process() as runner:
        times = median_ms([(path, image) for path in files], runner, args.rounds, args.threads)
        print(f"{runner.name} {runner.version}, {args.threads} thread(s), {args.image_size} pixels, batch 1")
    for i, row in enumerate(rows):
        row["ms"] = times[2 * i : 2 * i + 2]
    print_rows(rows)
    if args.json is not None:
        write_json({"image_size": args.image_size, "threads": args.threads, "results": rows}, args.json)


def print_rows(rows):
    width = max(len(row["network"]) for row in rows)
    print(f"{'network':<{width}}  MB float32  MB int8  ms float32  ms int8  int8 / float32")
    for row in rows:
        (big, small), (slow, fast) = row["sizes"], row["ms"]
        print(
            f"{row['network']:<{width}}  {big / 1e6:>10.2f}  {small / 1e6:>7.2f}  {slow:>10.2f}  {fast:>7.2f}  "
            f"{fast / slow:>14.2f}"
        )


if __name__ == "__main__":
    run(main)
