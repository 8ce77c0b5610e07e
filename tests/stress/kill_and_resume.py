"""Kill trainings at random moments, resume them, and compare their results with the results of an uninterrupted run.

python tests/stress/kill_and_resume.py --kills 100

A run takes a few seconds. It uses everything that has a state: optimizer, moving average of the weights, dropout, mixup
and gradient accumulation.
"""

import csv
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from src.errors import ArgumentParser, run
from src.weights.checkpoint import load_checkpoint

CONFIG = {
    "model": {"name": "mobilenet_v1", "width": 0.25, "stem_stride": 1, "dropout": 0.2},
    "data": {"name": "digits", "image_size": 8, "channels": 1, "crop_fraction": 1.0, "workers": 1},
    "augment": {"crop": "pad", "padding": 1, "flip": 0.0, "mixup": 0.2, "cutmix": 1.0},
    "train": {
        **{"epochs": 2, "batch_size": 256, "ema_decay": 0.9, "accumulate": 2, "label_smoothing": 0.1},
        **{"image_sizes": [8, 12], "recalibrate": 1},
    },
    "optimizer": {"lr": 0.02},
    "checkpoint": {"every_steps": 1, "keep_best": 2},
    "log": {"tensorboard": False},
}
# Columns and keys with times, which differ from run to run.
TIMING = ("images_per_second", "data_wait_fraction", "seconds")
STATE_TIMING = ("clock", "seconds", "epoch_seconds", "rows")


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="kills in all (default: 100)")
    parser.add_argument(
        "--mode", choices=("pynative", "graph"), default="pynative", help="as runtime.mode (default: pynative)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        counts = kill_and_compare(Path(work), args.kills, args.mode, args.seed)
    print(
        f"{counts['kills']} kills in {counts['runs']} runs, {counts['writing']} of them while a file was written: "
        f"{counts['different']} runs ended with other results than the uninterrupted run"
    )
    return 1 if counts["different"] else 0


def kill_and_compare(work, kills, mode, seed):
    """Kill and resume until there are `kills` kills; return the counts `kills`, `runs`, `writing` and `different`."""
    moments = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "src.training.loop", "src.training.network", "sklearn.datasets"])
    config = work / "config.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "runtime": {"mode": mode}}))

    began = time.monotonic()
    start(context, config, work / "whole").join()
    longest = time.monotonic() - began
    expected = outcome(work / "whole")
    counts = dict.fromkeys(("kills", "runs", "writing", "different"), 0)
    while counts["kills"] < kills:
        folder = work / "killed"
        counts["runs"] += 1
        while not (folder / "summary.json").exists():
            process = start(context, config, folder)
            process.join(moments.uniform(0, longest) if counts["kills"] < kills else None)
            if process.is_alive():
                process.kill()
                process.join()
                counts["kills"] += 1
                counts["writing"] += any(folder.rglob(".*.partial*"))
            elif process.exitcode:
                raise RuntimeError(f"a resumed run failed: {(work / 'log').read_text()}")
        counts["different"] += outcome(folder) != expected
        print(f"run {counts['runs']}: {counts['kills']} kills so far, {counts['different']} different", flush=True)
        shutil.rmtree(folder)
    return counts


def start(context, config, folder):
    """Start a training in `folder`, or resume the run there, in a new process."""
    process = context.Process(target=train_here, args=(config, folder))
    process.start()
    return process


def train_here(config, folder):
    log = os.open(config.with_name("log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    import train  # the fork server has imported it already

    sys.argv = ["train.py", "--config", str(config), "--resume", "auto", f"run.dir={folder}"]
    run(train.main)


def outcome(folder):
    """Return all results of a run: checkpoints, metrics.csv and summary.json, without times."""
    files = {}
    for path in [*(folder / "checkpoints").glob("*.ckpt"), folder / "best.ckpt", folder / "last.ckpt"]:
        checkpoint = load_checkpoint(path)
        tensors = {**checkpoint.weights, **checkpoint.optimizer}
        tensors.update({f"average.{name}": value for name, value in checkpoint.average.items()})
        state = {key: value for key, value in (checkpoint.state or {}).items() if key not in STATE_TIMING}
        files[path.name] = ({name: value.asnumpy().tobytes() for name, value in tensors.items()}, json.dumps(state))
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if key not in TIMING} for row in csv.DictReader(file)]
    summary = json.loads((folder / "summary.json").read_text())
    return files, rows, {key: value for key, value in summary.items() if key not in TIMING}


if __name__ == "__main__":
    sys.exit(run(main))
