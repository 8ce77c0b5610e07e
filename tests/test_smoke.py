"""Train, evaluate and export one network. This must work with every version of MindSpore that the README names."""

import json

import pytest

from tests.conftest import ROOT, SMALL


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_train_evaluate_export(command, tmp_path, mode):
    config = ROOT / "configs" / "quickstart.yaml"
    # A step takes ten times as long in PyNative mode, mostly to start operators. So it gets few steps with many images.
    length, images = {
        "graph": (["train.epochs=3"], 364),
        "pynative": (["train.epochs=1", "train.batch_size=256"], 20),
    }[mode]
    run = ["run.dir=run", f"runtime.mode={mode}", *SMALL, *length]
    done = command("train.py", "--config", config, *run, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = command("eval.py", "--checkpoint", "run/best.ckpt", "--json", "e.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    best = json.loads((tmp_path / "run" / "summary.json").read_text())["best"]
    assert mode == "pynative" or best["top1"] > 0.7
    assert json.loads((tmp_path / "e.json").read_text())["top1"] == best["top1"]
    checkpoint = ["--checkpoint", "run/best.ckpt", "--verify", images]
    done = command("export.py", *checkpoint, "--output", "net.mindir", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "e.json",
        "e.png",
        "net.mindir",
        "net.mindir.json",
        "run",
    ]
