"""Kill trainings at random moments, resume them, and compare their results with the results of an uninterrupted run.

python tests/stress/kill_and_resume.py --kills 100

A run takes a few seconds. It uses everything that has a state: optimizer, moving average of the weights, recalibrated
BatchNorm, dropout, mixup and gradient accumulation. Half of the kills are at any moment, half of them are in the
evaluation at the end of an epoch. SIGKILL ends a process at once; after SIGTERM it saves its state first. With
--ranks 2, msrun starts two processes per run.
"""

import contextlib
import csv
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from src.arguments import whole
from src.errors import ArgumentParser, run
from src.weights.checkpoint import load_checkpoint
from tests.stress import struck_training

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


INTERRUPTED = 143  # exit code of train.py after SIGTERM


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=whole(1, 1_000_000), default=100, help="kills in all (default: 100)")
    parser.add_argument(
        "--mode", choices=("pynative", "graph"), default="pynative", help="as runtime.mode (default: pynative)"
    )
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1, help="processes per run (default: 1)")
    parser.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, help="seed of the random moments (default: 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        counts = kill_and_compare(Path(work), args.kills, args.mode, args.seed, args.ranks)
    print(
        f"{counts['kills']} kills in {counts['runs']} runs, {counts['evaluating']} of them in an evaluation, "
        f"{counts['writing']} while a file was written: "
        f"{counts['different']} runs ended with other results than the uninterrupted run"
    )
    return 1 if counts["different"] else 0


def kill_and_compare(work, kills, mode, seed, ranks=1):
    """Kill and resume until there are `kills` kills.

    Return the counts `kills`, `runs`, `evaluating` (kills in an evaluation), `writing` and `different`.
    """
    moments = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    heavy = ["src.training.loop", "src.training.network", "sklearn.datasets"]
    context.set_forkserver_preload(["tests.stress.struck_training", *heavy])
    config = work / "config.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "runtime": {"mode": mode}}))

    began = time.monotonic()
    process = start(context, config, work / "whole", ranks)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the uninterrupted run failed: {log_of(work)}")
    longest = time.monotonic() - began
    evaluation = max(map(float, (work / "evaluations").read_text().split()))
    expected = outcome(work / "whole")
    counts = dict.fromkeys(("kills", "runs", "evaluating", "writing", "different"), 0)
    while counts["kills"] < kills:
        folder = work / "killed"
        counts["runs"] += 1
        while not (folder / "summary.json").exists():
            number = moments.choice((signal.SIGKILL, signal.SIGTERM))
            struck = killed = False
            if counts["kills"] == kills:
                process = start(context, config, folder, ranks)
            elif moments.random() < 0.5:
                strike = moments.randrange(ranks), int(number), moments.uniform(0, evaluation)
                process = start(context, config, folder, ranks, strike)
                process.join()
                struck = (work / "evaluations.struck").exists()
            else:
                process = start(context, config, folder, ranks)
                process.join(moments.uniform(0, longest))
                killed = process.is_alive()
                if killed:
                    kill(process, number)
            process.join()
            counts["kills"] += struck or killed
            counts["evaluating"] += struck
            counts["writing"] += any(folder.rglob(".*.partial*"))
            # Under msrun, the exit code is msrun's.
            expected_codes = (0, -number, INTERRUPTED) if struck or killed else (0,)
            if process.exitcode not in expected_codes and not (ranks > 1 and (struck or killed)):
                raise RuntimeError(f"a resumed run failed: {log_of(work)}")
        found = outcome(folder)
        counts["different"] += found != expected
        for name in found.keys() | expected.keys():
            if found.get(name) != expected.get(name):
                print(f"run {counts['runs']}: {name} differs", flush=True)
        print(f"run {counts['runs']}: {counts['kills']} kills so far, {counts['different']} different", flush=True)
        shutil.rmtree(folder)
    return counts


def log_of(work):
    """Return the output of the last run, with two ranks the output of both."""
    return "".join(path.read_text()[-3000:] for path in [work / "log", *sorted(work.glob("logs/worker_*.log"))])


def start(context, config, folder, ranks, strike=None):
    """Start a training in `folder`, or resume the run there, in a new process; with two `ranks`, msrun starts them.

    `strike` is (rank, number of a signal, seconds), see struck_training.py.
    """
    config.with_name("evaluations.struck").unlink(missing_ok=True)
    process = context.Process(target=train_here if ranks == 1 else train_under_msrun, args=(config, folder, strike))
    process.start()
    return process


def kill(process, number):
    """Send SIGKILL to a process and all its descendants, or another signal to those that train."""
    processes = family(process.pid)
    if number != signal.SIGKILL and len(processes) > 1:
        processes = [pid for pid in processes if b"struck_training" in command_of(pid) and not family(pid)[1:]]
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def family(pid):
    """Return the ids of a process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *itertools.chain.from_iterable(family(int(child)) for child in children)]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def prepare(config, folder, strike):
    """Send the output of this process to a file, set the environment of struck_training.py; return the arguments."""
    log = os.open(config.with_name("log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ["EVALUATIONS"] = str(config.with_name("evaluations"))
    if strike:
        os.environ["STRIKE"] = " ".join(map(str, strike))
    return ["--config", str(config), "--resume", "auto", f"run.dir={folder}"]


def train_here(config, folder, strike):
    sys.argv = ["train.py", *prepare(config, folder, strike)]
    run(struck_training.main)


def train_under_msrun(config, folder, strike):
    arguments = prepare(config, folder, strike)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # msrun runs the first `python` in PATH, so PATH begins with the folder of this environment.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = ["--worker_num=2", "--local_worker_num=2", f"--master_port={port}", "--join=True"]
    command = [Path(sys.executable).with_name("msrun"), *options, f"--log_dir={config.parent}/logs"]
    command += [Path(__file__).with_name("struck_training.py"), *arguments]
    sys.exit(subprocess.run(list(map(str, command)), cwd=config.parent, env=environment).returncode)


def outcome(folder):
    """Return all results of a run by name: checkpoints, metrics.csv and summary.json, without times.

    Of the states, only the newest is a result: SIGTERM saves a state at a moment at which no other run saves a state.
    """
    found = {}
    for path in [*(folder / "checkpoints").glob("epoch-*.ckpt"), folder / "best.ckpt", folder / "last.ckpt"]:
        checkpoint = load_checkpoint(path)
        tensors = {**checkpoint.weights, **checkpoint.optimizer}
        tensors.update({f"average.{name}": value for name, value in checkpoint.average.items()})
        found.update({f"{path.name}: {name}": value.asnumpy().tobytes() for name, value in tensors.items()})
        state = {key: value for key, value in (checkpoint.state or {}).items() if key not in STATE_TIMING}
        found[f"{path.name}: state"] = json.dumps(state)
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found["metrics.csv"] = [{key: value for key, value in row.items() if key not in TIMING} for row in rows]
    summary = json.loads((folder / "summary.json").read_text())
    found["summary.json"] = {key: value for key, value in summary.items() if key not in TIMING}
    return found


if __name__ == "__main__":
    sys.exit(run(main))
