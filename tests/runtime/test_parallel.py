"""Two processes that msrun starts on one machine, compared with one process that has the whole batch."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.weights.checkpoint import load_checkpoint
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

CONFIG = """
model: {name: mobilenet_v1, width: 0.25, stem_stride: 1}
data: {name: digits, image_size: 8, channels: 1, crop_fraction: 1.0, workers: 1}
augment: {crop: none, flip: 0.0}
train: {epochs: 1, batch_size: 128}
optimizer: {lr: 0.1}
log: {tensorboard: false}
"""
# Without sync_norm, the BatchNorm statistics differ from rank to rank, so only the head, without BatchNorm, is trained.
HEAD_ONLY = "model.freeze=backbone"


def start_two_ranks(cwd, script, *arguments, wait=True):
    """Start a script in two processes and return the process of msrun; with `wait`, it has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    msrun = Path(sys.executable).with_name("msrun")
    command = [
        *(msrun, "--worker_num=2", "--local_worker_num=2", f"--master_port={port}"),
        *("--join=True", f"--log_dir={cwd}/logs", ROOT / script, *arguments),
    ]
    # msrun runs the first `python` in PATH, so PATH begins with the folder of this environment.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GLOG")} | {"PATH": path}
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))  # the tests use one core; the ranks need a core each
    process = subprocess.Popen(
        list(map(str, command)), cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    os.sched_setaffinity(0, cores)
    if wait:
        process.log = process.communicate(timeout=600)[0].decode()
    return process


def test_two_processes_equal_one_process_with_the_doubled_batch(script, tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    done = start_two_ranks(tmp_path, "train.py", "--config", "c.yaml", "run.dir=two", HEAD_ONLY)
    assert done.returncode == 0, done.log
    double = "train.batch_size=256"
    alone = script("train.py", "--config", "c.yaml", "run.dir=one", double, HEAD_ONLY, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    two, one = (load_checkpoint(tmp_path / name / "last.ckpt") for name in ("two", "one"))
    assert (two.state["updates"], one.state["updates"]) == (5, 5)
    for name, expected in one.weights.items():
        np.testing.assert_allclose(two.weights[name].asnumpy(), expected.asnumpy(), rtol=2e-3, atol=2e-4, err_msg=name)
    for key in ("train_loss", "test_loss"):
        assert two.state["rows"][0][key] == pytest.approx(one.state["rows"][0][key], rel=1e-4)
    assert two.state["rows"][0]["train_top1"] == pytest.approx(one.state["rows"][0]["train_top1"], abs=2 / 1280)
    done = script("train.py", "--resume", "two", "train.epochs=2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert load_checkpoint(tmp_path / "two" / "last.ckpt").state["updates"] == 5 + 11


def test_synchronised_batchnorm_equals_batchnorm_of_the_whole_batch(tmp_path):
    generator = np.random.default_rng(0)
    images, weights = (generator.normal(size=(6, 3, 4, 5)).astype(np.float32) for _ in range(2))
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "weights.npy", weights)
    done = start_two_ranks(tmp_path, "tests/runtime/rank_of_sync_norm.py", tmp_path)
    assert done.returncode == 0, done.log

    # Gradients from Ioffe and Szegedy, Batch Normalization, section 3, with scale 1 and shift 0.
    x, dy = images.astype(np.float64), weights.astype(np.float64)
    count, axes = 6 * 4 * 5, (0, 2, 3)
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    normal = (x - mean) / np.sqrt(variance + 1e-5)
    means = dy.mean(axes, keepdims=True), (dy * normal).mean(axes, keepdims=True)
    dx = (dy - means[0] - normal * means[1]) / np.sqrt(variance + 1e-5)
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        for rank in range(2):
            got = np.load(tmp_path / f"{mode}-{rank}.npz")
            assert got["loss"] == pytest.approx((normal * dy).sum(), rel=1e-4)
            np.testing.assert_allclose(got["dx"], dx[rank::2], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(got["dparams"], [(dy * normal).sum(axes), dy.sum(axes)], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(got["moving_mean"], 0.2 * mean.ravel(), rtol=1e-4, atol=1e-6)
            unbiased = variance.ravel() * count / (count - 1)
            np.testing.assert_allclose(got["moving_variance"], 0.8 + 0.2 * unbiased, rtol=1e-5)


def test_a_killed_rank_ends_all_ranks_and_two_ranks_resume_the_run(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    run = ["--config", "c.yaml", "run.dir=run", HEAD_ONLY, "checkpoint.every_steps=1", "runtime.mode=pynative"]
    process = start_two_ranks(tmp_path, "train.py", *run, "train.epochs=3", wait=False)
    log = []
    for line in process.stdout:
        log.append(line.decode())
        if "Distributed job is spawned" in log[-1]:
            break
    states = tmp_path / "run" / "checkpoints"
    while process.poll() is None and not list(states.glob("state-*.ckpt")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
    workers = [int(pid) for pid in children(process.pid) if "train.py" in command_of(pid)]
    os.kill(workers[-1], signal.SIGKILL)
    log.append(process.communicate(timeout=300)[0].decode())
    assert process.returncode != 0, "".join(log)
    assert not (tmp_path / "run" / "summary.json").exists()
    done = start_two_ranks(tmp_path, "train.py", "--resume", "run")
    assert done.returncode == 0, done.log
    assert load_checkpoint(tmp_path / "run" / "last.ckpt").state["updates"] == 15


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()
