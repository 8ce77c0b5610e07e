"""Train, evaluate and export one network. This must work with every version of MindSpore that the README names."""

import json
import shutil

import pytest

from tests.conftest import ROOT, SMALL

pytestmark = pytest.mark.slow


def test_train_evaluate_export_in_graph_mode(quickstart, command, tmp_path):
    _, run, done = quickstart
    assert (done.returncode, done.stderr) == (0, "")
    shutil.copytree(run, tmp_path / "run")
    assert evaluate_and_export(command, tmp_path, images=364) > 0.7


def test_train_evaluate_export_in_pynative_mode(command, tmp_path):
    # A step takes ten times as long in PyNative mode, mostly to start operators. So it gets few steps with many images.
    run = ["run.dir=run", "runtime.mode=pynative", *SMALL, "train.epochs=1", "train.batch_size=256"]
    done = command("train.py", "--config", ROOT / "configs" / "quickstart.yaml", *run, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    evaluate_and_export(command, tmp_path, images=20)


def evaluate_and_export(command, tmp_path, images):
    """Evaluate the run, export it and verify the file with some `images`; return the best top-1."""
    done = command("eval.py", "--checkpoint", "run/best.ckpt", "--json", "e.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    best = json.loads((tmp_path / "run" / "summary.json").read_text())["best"]
    assert json.loads((tmp_path / "e.json").read_text())["top1"] == best["top1"]
    checkpoint = ["--checkpoint", "run/best.ckpt", "--verify", images]
    done = command("export.py", *checkpoint, "--output", "net.mindir", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "e.json",
        "e.png",
        "e.reliability.png",
        "net.mindir",
        "net.mindir.json",
        "run",
    ]
    return best["top1"]
