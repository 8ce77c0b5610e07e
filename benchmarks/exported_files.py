"""Measure the milliseconds per run of exported files on every runtime that can load them. The files take turns.

python benchmarks/exported_files.py digits.mindir digits.ms digits.onnx --threads 1
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from src.arguments import whole
from src.deploy.description import read_description
from src.deploy.runtimes.lite import HOW_TO_GET, find_lite
from src.deploy.runtimes.timing import measure, runners_for
from src.errors import ArgumentParser, UserError, run
from src.files import write_json
from src.outputs import add_overwrite, check_outputs, output_files


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of export.py: .mindir, .ms, .onnx, .param")
    parser.add_argument(
        "--threads", type=whole(0, 1024), default=1, help="threads of each runtime; 0: the runtime decides (default: 1)"
    )
    parser.add_argument("--rounds", type=whole(1, 10_000), default=20, help="rounds of four timed runs (default: 20)")
    parser.add_argument("--lite-python", metavar="PATH", help="the Python that has MindSpore Lite")
    parser.add_argument("--json", metavar="PATH", help="also write the figures to this file")
    add_overwrite(parser)
    args = parser.parse_args()
    read = {f"FILE {name}": name for path in args.files for name in (path, f"{path}.json")}
    check_outputs(output_files("--json", args.json, ".json"), read, args.overwrite)
    lite = find_lite(args.lite_python)
    if lite is None:
        print(f"MindSpore Lite was not found and is left out: {HOW_TO_GET}")

    generator, jobs = np.random.default_rng(0), []
    for path in args.files:
        described = read_description(path).input
        array = generator.integers(0, 256, [side or 1 for side in described.shape])
        array = array.astype(np.uint8) if described.kind == "image" else np.float32(array / 255)
        jobs += [(path, runner, array) for runner in runners_for(path, lite)]
    if not jobs:
        raise UserError(f"{', '.join(args.files)}: no installed runtime can load these files")
    rows = measure(jobs, args.rounds, args.threads)
    for _, runner, _ in jobs:
        runner.close()
    print_rows(rows)
    if args.json is not None:
        write_json({"threads": args.threads, "rounds": args.rounds, "results": rows}, args.json)
        print(f"written: {args.json}")


def print_rows(rows):
    width = max(len("file"), *(len(row["path"]) for row in rows))
    print(f"{'file':<{width}}  {'runtime':<21}       ms      middle half  load ms      MB  peak MiB")
    for row in rows:
        runtime = f"{row['runtime']} {row['version']}"
        spread = f"{row['low_ms']:.2f} to {row['high_ms']:.2f}"
        print(
            f"{row['path']:<{width}}  {runtime:<21}  {row['median_ms']:>7.2f}  {spread:>15}  {row['load_ms']:>7.0f}  "
            f"{row['size'] / 1e6:>6.2f}  {row['peak_memory'] / 2**20:>8.0f}"
        )


if __name__ == "__main__":
    run(main)
