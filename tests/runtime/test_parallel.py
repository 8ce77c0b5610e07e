"""Processes that msrun starts on one machine, compared with one process that has the whole batch.

A start of two ranks takes long, so most tests read the results of the same start: see `two_ranks`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from PIL import Image

from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.evaluation.evaluate import evaluate, make_eval_step
from src.models import NETWORKS
from src.weights.checkpoint import load_checkpoint, open_checkpoint
from tests.conftest import ROOT
from tests.runtime import rank_of_techniques
from tests.stress.kill_and_resume import outcome
from tests.training.test_graphs import check_operators

pytestmark = pytest.mark.slow

CONFIG = """
model: {name: mobilenet_v1, width: 0.25, stem_stride: 1}
data: {name: digits, image_size: 8, channels: 1, crop_fraction: 1.0, workers: 1}
augment: {crop: none, flip: 0.0}
train: {epochs: 1, batch_size: 128}
optimizer: {lr: 0.1}
log: {tensorboard: false}
"""
# Without sync_norm, each rank normalises with the statistics of its own images. One process with the whole batch does
# not, so the test that compares them trains only the head, which has no BatchNorm.
HEAD_ONLY = "model.freeze=backbone"
NORM_SHAPE = (6, 3, 4, 5)
RUN = ["--config", "c.yaml", "train.epochs=2", "train.ema_decay=0.5", "train.recalibrate=0", "optimizer.lr=0.02"]
# Recalibration would hide moving statistics that differ from rank to rank.
RUN += ["checkpoint.every_steps=1", "runtime.mode=pynative"]
COMMON = ["--config", "c.yaml", "run.dir=run"]
PHOTOS = ["--config", "photos.yaml", "run.dir=run"]
# What the second rank is started with in place of the first rank's arguments, and what both ranks say.
STARTS = [
    (COMMON, [*COMMON, "train.batch_size=64"], "train.batch_size: differs between the ranks 0 and 1"),
    (COMMON, ["--config", "d.yaml", "run.dir=run"], "optimizer.lr: differs"),
    (COMMON, [*COMMON, "augment.color_jitter=0.3"], "augment.color_jitter: differs"),
    (COMMON, [*COMMON, "--resume", "auto"], "--resume: differs"),
    ([*COMMON, "--overwrite"], COMMON, "--overwrite: differs"),
    (PHOTOS, [*PHOTOS, "data.root=named"], "classes of the training images: differs"),
    (PHOTOS, [*PHOTOS, "data.root=fewer"], "number of training images: differs"),
    (PHOTOS, [*PHOTOS, "data.root=moved"], "labels of the test images: differs"),
    (PHOTOS, [*PHOTOS, "data.root=equal", "data.workers=2", "run.dir=other"], "reached"),
]
COUNTS = {  # images by split and class
    "photos": {"train": {"a": 5, "b": 5}, "val": {"a": 2, "b": 2}},
    "named": {"train": {"a": 5, "c": 5}, "val": {"a": 2, "c": 2}},
    "fewer": {"train": {"a": 5, "b": 4}, "val": {"a": 2, "b": 2}},
    "moved": {"train": {"a": 5, "b": 5}, "val": {"a": 3, "b": 1}},
    "equal": {"train": {"a": 5, "b": 5}, "val": {"a": 2, "b": 2}},
}


def start_ranks(cwd, script, *arguments, ranks=2, options=(), **variables):
    """Run a script in some processes and return the ended process of msrun, with its output as `log`.

    `options` are msrun's, and `variables` are set in its environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    msrun = Path(sys.executable).with_name("msrun")
    command = [
        *(msrun, f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={port}"),
        *("--join=True", f"--log_dir={cwd}/logs", *options, ROOT / script, *arguments),
    ]
    # msrun runs the first `python` in PATH, so PATH begins with the folder of this environment.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GLOG")} | {
        "PATH": path,
        **variables,
    }
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))  # the tests use one core; the ranks need a core each
    process = subprocess.Popen(
        list(map(str, command)), cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    os.sched_setaffinity(0, cores)
    process.log = process.communicate(timeout=600)[0].decode()
    return process


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Start two ranks once, and let them do what most tests of this file check; return the folder with the results."""
    folder = tmp_path_factory.mktemp("two_ranks")
    (folder / "c.yaml").write_text(CONFIG)
    prepare_other_settings(folder)
    generator = np.random.default_rng(0)
    for name in ("images", "weights"):
        np.save(folder / f"{name}.npy", generator.normal(size=NORM_SHAPE).astype(np.float32))
    runs = [["--config", "c.yaml", "run.dir=two", HEAD_ONLY], [*RUN, "run.dir=whole"]]
    (folder / "runs.json").write_text(json.dumps(runs))
    own = CONFIG.replace(", workers: 1", "").replace("batch_size: 128", "batch_size: 256")
    (folder / "own.yaml").write_text(own + "runtime: {mode: pynative}\n")
    done = start_ranks(folder, "tests/runtime/two_ranks.py", folder)
    assert done.returncode == 0, done.log
    return folder


def prepare_other_settings(folder):
    """Write the configs and the images with which the ranks of STARTS are started."""
    (folder / "d.yaml").write_text(CONFIG.replace("lr: 0.1", "lr: 0.2"))
    (folder / "photos.yaml").write_text(
        "data: {name: image_folder, root: photos, image_size: 32}\ntrain: {batch_size: 2}\n"
    )
    for root, splits in COUNTS.items():
        for split, classes in splits.items():
            for name, count in classes.items():
                images = folder / root / split / name
                images.mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", (40, 40), (i, 2 * i, 0)).save(images / f"{i}.png")
    (folder / "starts.json").write_text(json.dumps([case[:2] for case in STARTS]))


def test_two_processes_equal_one_process_with_the_doubled_batch(two_ranks, script, tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    shutil.copytree(two_ranks / "two", tmp_path / "two")
    arguments = ["--config", "c.yaml", "run.dir=one", "train.batch_size=256", HEAD_ONLY]
    alone = script("train.py", *arguments, cwd=tmp_path, shallow=NETWORKS)
    assert alone.returncode == 0, alone.stderr
    two, one = (load_checkpoint(tmp_path / name / "last.ckpt") for name in ("two", "one"))
    assert (two.state["updates"], one.state["updates"]) == (5, 5)
    for name, expected in one.weights.items():
        np.testing.assert_allclose(two.weights[name].asnumpy(), expected.asnumpy(), rtol=2e-3, atol=2e-4, err_msg=name)
    for key in ("train_loss", "test_loss"):
        assert two.state["rows"][0][key] == pytest.approx(one.state["rows"][0][key], rel=1e-4)
    assert two.state["rows"][0]["train_top1"] == pytest.approx(one.state["rows"][0]["train_top1"], abs=2 / 1280)
    done = script("train.py", "--resume", "two", "train.epochs=2", cwd=tmp_path, shallow=NETWORKS)
    assert (done.returncode, done.stderr) == (0, "")
    assert load_checkpoint(tmp_path / "two" / "last.ckpt").state["updates"] == 5 + 11


def test_synchronised_batchnorm_equals_batchnorm_of_the_whole_batch(two_ranks):
    # Gradients from Ioffe and Szegedy, Batch Normalization, section 3, with scale 1 and shift 0.
    x, dy = (np.load(two_ranks / f"{name}.npy").astype(np.float64) for name in ("images", "weights"))
    count, axes = 6 * 4 * 5, (0, 2, 3)
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    normal = (x - mean) / np.sqrt(variance + 1e-5)
    means = dy.mean(axes, keepdims=True), (dy * normal).mean(axes, keepdims=True)
    dx = (dy - means[0] - normal * means[1]) / np.sqrt(variance + 1e-5)
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        for rank in range(2):
            got = np.load(two_ranks / f"{mode}-{rank}.npz")
            assert got["loss"] == pytest.approx((normal * dy).sum(), rel=1e-4)
            np.testing.assert_allclose(got["dx"], dx[rank::2], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(got["dparams"], [(dy * normal).sum(axes), dy.sum(axes)], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(got["moving_mean"], 0.2 * mean.ravel(), rtol=1e-4, atol=1e-6)
            unbiased = variance.ravel() * count / (count - 1)
            np.testing.assert_allclose(got["moving_variance"], 0.8 + 0.2 * unbiased, rtol=1e-5)


def test_two_ranks_with_batchnorm_save_what_they_evaluate_and_resume_exactly(two_ranks, script, tmp_path):
    best = json.loads((two_ranks / "whole" / "summary.json").read_text())["best"]
    arguments = ["--checkpoint", two_ranks / "whole" / "best.ckpt", "--json", "metrics.json"]
    done = script("eval.py", *arguments, cwd=tmp_path, shallow=NETWORKS)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["top1"], metrics["top5"]) == (best["top1"], best["top5"])
    # The ranks have other batches and add the losses in another order.
    assert metrics["loss"] == pytest.approx(best["loss"], rel=1e-6)

    # The first rank saves a state after each of the 5 batches of an epoch.
    (tmp_path / "c.yaml").write_text(CONFIG)
    killed = [tmp_path, "tests/runtime/killed_rank.py"]
    # The scheduler of the ranks waits this many seconds for a sign of the killed rank, and by default 30.
    done = start_ranks(*killed, 4, *RUN, "run.dir=run", MS_NODE_TIMEOUT="10")
    assert done.returncode != 0, done.log
    assert (tmp_path / "run" / "checkpoints" / "state-00000-0000002.ckpt").exists(), done.log
    assert not (tmp_path / "run" / "summary.json").exists()
    done = start_ranks(*killed, 0, "--resume", "run")
    assert done.returncode == 0, done.log
    assert outcome(tmp_path / "run") == outcome(two_ranks / "whole")


def test_only_the_first_rank_needs_the_run_folder(two_ranks):
    found = [json.loads((two_ranks / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert [ranks.pop("rank") for ranks in found] == [0, 1]
    assert found[0] == found[1]
    # 1,437 training images are 2 batches of two ranks.
    assert [run[:4] for run in found[0]["runs"]] == [[1, 2, 1, 1e-8], [2, 4, 1, 1e-8]]
    parts = (
        "run already contains a run",
        "nowhere is not a run folder",
        "train.seed: 1 differs from the run's value 0",
    )
    assert len(found[0]["mistakes"]) == len(parts)
    assert all(part in mistake for part, mistake in zip(parts, found[0]["mistakes"]))
    assert found[0]["sharing"] == 2
    assert found[0]["sent"] == [True, True]
    assert found[0]["all_true"] == [True, False] * 2
    assert not (two_ranks / "rank-1" / "run").exists()
    saved = yaml.safe_load((two_ranks / "rank-0" / "run" / "config.yaml").read_text())
    assert saved["data"]["workers"] == max(1, min(os.cpu_count() // 2, 8))


def test_ranks_with_other_settings_or_data_do_not_train(two_ranks):
    ended = [json.loads((two_ranks / f"ended-{rank}.json").read_text()) for rank in range(2)]
    for rank, ends in enumerate(ended):
        assert len(ends) == len(STARTS)
        for (*_, part), end in zip(STARTS, ends):
            assert end.startswith(part)
            assert part == "reached" or f"this is rank {rank}, found " in end
    assert "found 128)" in ended[0][0]
    assert "found 64)" in ended[1][0]
    assert not (two_ranks / "run").exists()


TINY = """
model: {name: tiny, stem_stride: 1}
data: {name: digits, image_size: 8, channels: 1, crop_fraction: 1.0, workers: 1}
augment: {crop: none, flip: 0.0}
train: {epochs: 1, recalibrate: 0}
optimizer: {lr: 0.2}
runtime: {kernels: stock}
log: {tensorboard: false}
"""
GLOBAL_BATCH = 240  # 5 batches of the digits
MIXING = ["augment.mixup=0.2", "augment.cutmix=1.0", "model.dropout=0.2", "train.accumulate=2", "train.clip_norm=1.0"]
AVERAGE = "train.ema_decay=0.5"
# With synchronised BatchNorm, the techniques of `same` compute what a single process with the whole batch computes.
TECHNIQUES = {
    "mixing": [*MIXING, AVERAGE, "train.recalibrate=1", "checkpoint.every_steps=1", "optimizer.name=adamw"],
    "same": ["runtime.sync_norm=true", AVERAGE, "train.accumulate=2", "train.clip_norm=0.1", "distill.teacher=TEACHER"],
    "all": [*MIXING, AVERAGE, "train.recalibrate=2", "runtime.sync_norm=true", "distill.teacher=TEACHER"],
    "float16": ["runtime.precision=float16", "runtime.sync_norm=true"],
}
CASES = {  # by the number of ranks
    2: [("mixing", "graph"), ("same", "graph"), ("all", "pynative"), ("float16", "pynative")],
    3: [("same", "pynative"), ("all", "pynative")],
}


def write_cases(folder, cases, teacher, ranks=1):
    """Write the files that rank_of_techniques.py reads; `cases` are pairs (technique, mode)."""
    overrides = {}
    for name, mode in cases:
        common = [f"runtime.mode={mode}", f"train.batch_size={GLOBAL_BATCH // ranks}"]
        technique = [override.replace("TEACHER", str(teacher)) for override in TECHNIQUES.get(name, [])]
        overrides[name] = [*common, *technique]
    (folder / "c.yaml").write_text(TINY)
    (folder / "cases.json").write_text(json.dumps(overrides))


@pytest.fixture(scope="module")
def alone(fresh_processes, tmp_path_factory):
    """The folder of a single process with the whole batch: the run `teacher`, and the technique `same`."""
    folder = tmp_path_factory.mktemp("alone")
    write_cases(folder, [("teacher", "pynative"), ("same", "pynative")], folder / "teacher" / "best.ckpt")
    process = fresh_processes.Process(target=rank_of_techniques.main, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.mark.parametrize("ranks", CASES)
def test_all_ranks_end_alike_with_every_technique(alone, tmp_path, monkeypatch, ranks):
    write_cases(tmp_path, CASES[ranks], alone / "teacher" / "best.ckpt", ranks)
    # msrun needs a core for each rank that it binds.
    bound = ranks <= os.cpu_count()
    options = ["--bind_core=True"] if bound else []
    done = start_ranks(tmp_path, "tests/runtime/rank_of_techniques.py", tmp_path, ranks=ranks, options=options)
    assert done.returncode == 0, done.log
    if bound:
        cores = [json.loads((tmp_path / f"cores-{rank}.json").read_text()) for rank in range(ranks)]
        assert all(cores)
        assert len(set().union(*cores)) == sum(map(len, cores))  # no rank has a core of another rank
    found = {name: [note_of(tmp_path / f"{name}-{rank}.json") for rank in range(ranks)] for name, _ in CASES[ranks]}
    for name, notes in found.items():
        assert notes == [notes[0]] * ranks, name

    expected, same = note_of(alone / "same-0.json"), found["same"][0]
    assert same["updates"] == expected["updates"] == 2
    assert same["rows"][0] == pytest.approx(expected["rows"][0], rel=1e-4, abs=1 / 364)
    with np.load(alone / "same-0.npz") as weights, np.load(tmp_path / "same-0.npz") as others:
        for name in weights.files:
            np.testing.assert_allclose(others[name], weights[name], rtol=1e-3, atol=1e-5, err_msg=name)

    # A single process evaluates the networks that the ranks saved.
    monkeypatch.setitem(NETWORKS, "tiny", rank_of_techniques.Tiny)
    for name in found.keys() - {"float16"}:
        checkpoint, config, classifier = open_checkpoint(tmp_path / name / "best.ckpt", ["runtime.mode=pynative"])
        loader = eval_loader(config, load_samples(config.data, "eval", checkpoint.classes))
        result = evaluate(classifier, make_eval_step(classifier, compiled=False), loader)
        (row,) = found[name][0]["rows"]
        assert (result.top1, result.top5) == (row["average_top1"], row["average_top5"]), name
        assert result.loss == pytest.approx(row["average_loss"], rel=1e-5), name

    if ranks == 2:  # in graph mode
        operators = set(json.loads((tmp_path / "operators.json").read_text()))
        assert operators >= {"AllReduce", "BatchNorm", "Rsqrt", "BatchNormGrad"}
        check_operators(operators)


def note_of(path):
    return json.loads(path.read_text())
