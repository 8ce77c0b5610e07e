"""The scripts as a user runs them: exit codes, output and written files."""

import csv
import json
import runpy
import shutil
import signal
import subprocess
import sys

import mindcv
import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from src.models import NETWORKS
from src.weights.checkpoint import load_checkpoint
from tests.conftest import ROOT, SMALL

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
pytestmark = pytest.mark.slow


def test_training_leaves_a_complete_run_folder_and_nothing_else(quickstart):
    cwd, folder, done = quickstart
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [path.name for path in cwd.iterdir()] == ["run"]
    names = ["best.ckpt", "checkpoints", "config.yaml", "curves.png", "events", "last.ckpt"]
    names += ["metrics.csv", "summary.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    accuracies = [float(row["test_top1"]) for row in rows]
    assert accuracies[-1] == pytest.approx(summary["final"]["top1"], abs=1e-5)
    assert max(accuracies) == pytest.approx(summary["best"]["top1"], abs=1e-5)
    assert summary["best"]["top1"] > 0.7
    assert accuracies[summary["best"]["epoch"] - 1] == max(accuracies)
    assert 0 <= summary["data_wait_fraction"] < 1
    assert {"params", "macs", "images_per_second", "seconds"} <= summary.keys()
    assert Image.open(folder / "curves.png").size[0] > 500


@pytest.mark.parametrize(("mode", "kernels"), [("graph", "stock"), ("pynative", "native")])
def test_evaluation_gives_the_metrics_of_the_summary(quickstart, script, tmp_path, mode, kernels):
    _, folder, _ = quickstart
    runtime = [f"runtime.mode={mode}", f"runtime.kernels={kernels}"]
    done = script("eval.py", "--checkpoint", folder / "best.ckpt", "--json", "out/e.json", *runtime, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "out" / "e.json").read_text())
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert result["top1"] == best["top1"]
    assert result["top5"] == best["top5"]
    assert result["loss"] == pytest.approx(best["loss"], rel=1e-5)
    assert result["images"] == 364
    assert np.sum(result["confusion"]) == 364
    assert np.trace(result["confusion"]) / 364 == best["top1"]
    assert [row["class"] for row in result["per_class"]] == [str(i) for i in range(10)]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["e.json", "e.png", "e.reliability.png", "out"]


def test_evaluation_of_the_training_split(quickstart, script, tmp_path):
    _, folder, _ = quickstart
    done = script("eval.py", "--checkpoint", folder / "best.ckpt", "--split", "train", "--json", "e.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "e.json").read_text())["images"] == 1433


def test_prediction_of_the_users_images(quickstart, script, tmp_path, digit_images):
    _, folder, _ = quickstart
    (tmp_path / "mine").mkdir()
    for i in range(3):
        Image.fromarray(digit_images[0][i]).convert("RGB").save(tmp_path / "mine" / f"{i}.png")
    arguments = ["--checkpoint", folder / "best.ckpt", "--images", "mine", "--csv", "out/p.csv"]
    done = script("eval.py", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with open(tmp_path / "out" / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"mine/{i}.png" for i in range(3)]
    for row in rows:
        probabilities = [float(row[f"p({i})"]) for i in range(10)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == max(probabilities)
        assert row["class"] == str(np.argmax(probabilities))
    assert Image.open(tmp_path / "out" / "p.png").size[0] > 100


# MobileNetV3 has all kinds of layers of the other MobileNets and MnasNet. test_smoke.py tests ShuffleNetV2, whole; the
# networks here are shallow.
@pytest.mark.parametrize("name", ["shufflenet_v1", "ghostnet", "mobilenet_v3_small"])
def test_networks_train_and_export(script, tmp_path, name):
    network = [f"model.name={name}", f"model.width={min(NETWORKS[name].variants)}", "model.dropout=0.1", "run.dir=run"]
    network.append("model.norm_momentum=0.9")  # because MobileNetV3's default hardly changes in so few steps
    done = script("train.py", "--config", QUICKSTART, *network, *SMALL, cwd=tmp_path, shallow=NETWORKS)
    assert (done.returncode, done.stderr) == (0, "")
    best = json.loads((tmp_path / "run" / "summary.json").read_text())["best"]
    assert best["top1"] > 0.5
    checkpoint = ["--checkpoint", "run/best.ckpt", "--verify", 91]
    done = script("export.py", *checkpoint, "--output", "net.mindir", cwd=tmp_path, shallow=NETWORKS)
    assert (done.returncode, done.stderr) == (0, "")
    verification = json.loads((tmp_path / "net.mindir.json").read_text())["verification"]
    assert verification["images"] == 91
    for check in verification["runtimes"]:
        assert check["top1"] == verification["checkpoint_top1"] > 0.4
        assert check["max_difference"] <= 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.mindir", "net.mindir.json", "run"]


def test_training_on_a_folder_of_photos(script, tmp_path, photos):
    config = tmp_path / "photos.yaml"
    config.write_text(
        "model: {name: mobilenet_v2, width: 0.25}\n"
        f"data: {{name: image_folder, root: {photos}, image_size: 64}}\n"
        "train: {epochs: 1, batch_size: 8}\n"
        f"run: {{dir: {tmp_path}/run}}\n"
    )
    done = script("train.py", "--config", config, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shutil.rmtree(photos / "train")
    done = script("eval.py", "--checkpoint", tmp_path / "run" / "best.ckpt", "--json", "e.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "e.json").read_text())
    assert (result["classes"], result["images"]) == (["china", "flower"], 8)


def test_bad_photos_are_skipped_and_counted_and_a_split_can_be_evaluated(script, mistake, tmp_path, photos):
    for name in ("train/china/1.jpg", "val/flower/2.jpg"):
        (photos / name).write_bytes(b"")
    shutil.copytree(photos / "train", photos / "test")
    settings = ["data.name=image_folder", f"data.root={photos}", "data.image_size=32", "data.channels=3", "run.dir=run"]
    network = ["model.width=0.5", "data.mean=null", "data.std=null", "train.epochs=1", "train.batch_size=8"]
    arguments = ["--config", QUICKSTART, *settings, *network, "schedule.warmup_epochs=0", "runtime.mode=pynative"]
    assert "train/china/1.jpg: is empty" in mistake("train.py", *arguments, "run.dir=refused", cwd=tmp_path)
    done = script("train.py", *arguments, "data.on_bad_image=skip", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["bad_images"] == {"train": 1, "test": 1}
    assert "bad train images skipped (data.on_bad_image): 1" in done.stdout
    done = script("eval.py", "--checkpoint", "run/best.ckpt", "--split", "test", "--json", "e.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "e.json").read_text())["images"] == 23
    assert "bad images left out (data.on_bad_image): 1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train.epoch=3"], ["train.epoch: unknown key; did you mean train.epochs?"]),
        (["train.epochs=many"], ["train.epochs: 'many' must be a valid integer"]),
        (["model.name=resnet"], ["model.name: 'resnet' is not one of", *NETWORKS]),
        (["data.name=fashion-mnist"], ["data.name: 'fashion-mnist' is not one of", "did you mean fashion_mnist?"]),
        (["data.name=fashion_mnist", "data.root=nowhere"], ["data.root: nowhere: no such folder"]),
        (["model.classes=9"], ["model.classes: 9 is fewer than the 10 classes of digits"]),
        (["train.batch_size=2000"], ["train.batch_size: is larger", "(found 2000, expected at most 1433)"]),
        (["--surprise"], ["--surprise: is not an option"]),
    ],
)
def test_errors_of_training_are_one_line(mistake, tmp_path, arguments, parts):
    error = mistake("train.py", "--config", QUICKSTART, "run.dir=run", *arguments, cwd=tmp_path)
    assert all(part in error for part in parts)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_an_image_folder_are_one_line(mistake, tmp_path, photos):
    arguments = ["--config", QUICKSTART, "data.name=image_folder", f"data.root={photos}", f"run.dir={tmp_path}/run"]
    bad = photos / "train" / "china" / "bad.jpg"
    bad.write_text("this is not an image")
    assert f"{bad}: is not an image" in mistake("train.py", *arguments, cwd=tmp_path)
    bad.unlink()
    empty = photos / "train" / "zebra"
    empty.mkdir()
    assert f"{empty}: has no images" in mistake("train.py", *arguments, cwd=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_run_is_overwritten_only_with_the_option_overwrite(quickstart, script, tmp_path):
    _, folder, _ = quickstart
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arguments = ["--config", QUICKSTART, *SMALL, "train.epochs=1", "train.batch_size=256", "runtime.mode=pynative"]
    refused = script("train.py", *arguments, f"run.dir={folder}", cwd=tmp_path)
    assert (refused.returncode, refused.stdout.count("epoch ")) == (2, 0)
    assert refused.stderr.startswith(f"error: run.dir: {folder} already contains a run (found ")
    assert refused.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    shutil.copytree(folder, tmp_path / "copy")
    done = script("train.py", *arguments, "run.dir=copy", "--overwrite", "train.seed=1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed: 1" in (tmp_path / "copy" / "config.yaml").read_text()
    assert (tmp_path / "copy" / "last.ckpt").read_bytes() != before["last.ckpt"]
    assert len(list((tmp_path / "copy" / "events").iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "mode", "batch_size", "updates"),
    [(signal.SIGINT, "graph", 32, 44), (signal.SIGTERM, "pynative", 256, 5), (signal.SIGHUP, "pynative", 256, 5)],
)
def test_interrupted_training_ends_with_one_line_and_a_usable_checkpoint(
    script, tmp_path, number, mode, batch_size, updates
):
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(QUICKSTART), "run.dir=run", *SMALL]
    # A small network, because most of the time is compilation.
    settings = ["model.name=mobilenet_v1", "model.width=0.25", "train.epochs=1000"]
    settings += [f"runtime.mode={mode}", f"train.batch_size={batch_size}"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *settings], cwd=tmp_path, **streams) as process:
        for line in process.stdout:
            if line.startswith("epoch   1/1000"):
                process.send_signal(number)
        errors = process.stderr.read()
    expected = "error: interrupted; resume with: python train.py --resume run\n"
    assert (process.returncode, errors) == (128 + number, expected)
    assert load_checkpoint(tmp_path / "run" / "last.ckpt").state["updates"] >= updates
    done = script("eval.py", "--checkpoint", "run/last.ckpt", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_of_a_checkpoint_are_one_line(quickstart, mistake, tmp_path):
    _, folder, _ = quickstart
    content = (folder / "best.ckpt").read_bytes()
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes(content[: len(content) // 2])
    text = tmp_path / "text.ckpt"
    text.write_text("hello")
    for checkpoint in (tmp_path / "nowhere.ckpt", truncated, text):
        arguments = ["--checkpoint", checkpoint]
        assert str(checkpoint) in mistake("eval.py", *arguments, cwd=tmp_path)
        assert str(checkpoint) in mistake("export.py", *arguments, "--output", "net.mindir", cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.ckpt", "truncated.ckpt"]


@pytest.mark.parametrize(
    ("name", "arguments", "part"),
    [
        ("eval.py", ["--csv", "p.csv"], "--csv p.csv: needs --images"),
        ("eval.py", ["--images", ".", "--json", "e.json"], "--json e.json: cannot be used with --images"),
        ("eval.py", ["--images", "nowhere"], "--images: nowhere: no such file or folder"),
        ("eval.py", ["model.width=1.0"], "model.width=1.0: cannot be changed for a trained network"),
        (
            "export.py",
            ["--output", "net.pb"],
            "--output net.pb: must end with .mindir, .onnx, .ms, .air, .param, .html",
        ),
        ("export.py", ["--output", "net.onnx", "--format", "mindir"], "--output net.onnx: must end with .mindir"),
        ("export.py", ["--output", "net.air"], "--format air: needs another device (found CPU, expected Ascend)"),
        (
            "export.py",
            ["--output", "net.mindir", "--batch", "0"],
            "--batch: must be a whole number from 1 to 256 (found 0)",
        ),
        (
            "export.py",
            ["--output", "net.onnx", "--calibration", "8"],
            "--calibration 8: is not used with",
        ),
        ("export.py", ["--output", "net.onnx", "--max-drop", "2"], "--max-drop 2.0: is not used with --format onnx"),
        ("export.py", ["--output", "net.onnx", "--mindir-version", "3"], "--mindir-version 3: is not used with"),
        (
            "export.py",
            ["--output", "net.mindir", "--precision", "int8"],
            "--format mindir does not support --precision int8",
        ),
        (
            "export.py",
            ["--output", "net.ms", "--lite-python", "/bin/false"],
            "--lite-python /bin/false: is not a Python",
        ),
        ("eval.py", ["--lite-python", "python3"], "--lite-python python3: is used with .ms files only"),
        ("export.py", ["--output", "net.mindir", "--verify", "0"], "--verify: must be a whole number from 1"),
        ("export.py", ["--output", "net.mindir", "runtime.kernels=native"], "runtime.kernels=native: is not supported"),
        ("export.py", ["--output", "net.mindir", "runtime.device=gpu"], "runtime.device: gpu is not available here"),
    ],
)
def test_errors_of_options_and_overrides_with_a_checkpoint_are_one_line(
    quickstart, mistake, tmp_path, name, arguments, part
):
    _, folder, _ = quickstart
    assert part in mistake(name, "--checkpoint", folder / "best.ckpt", *arguments, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_imported_weights_are_fine_tuned(quickstart, script, tmp_path):
    """Pretrained and fine-tuned on digits, the first epoch is better than the first epoch from random weights."""
    _, folder, _ = quickstart
    arguments = ["data.image_size=16", "augment.padding=1", "train.epochs=1", "run.dir=run"]
    pretrained = f"model.pretrained={folder / 'best.ckpt'}"
    done = script("train.py", "--config", ROOT / "configs" / "finetune.yaml", pretrained, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pretrained: loaded all weights from" in done.stdout
    fine_tuned = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]["top1"]
    with open(folder / "metrics.csv", newline="") as file:
        from_scratch = float(next(csv.DictReader(file))["test_top1"])
    assert fine_tuned > max(0.85, from_scratch)


def test_weights_of_mindcv_are_imported_into_a_checkpoint(script, mistake, tmp_path):
    peer = mindcv.create_model("mobilenet_v1_025", num_classes=10)
    ms.save_checkpoint(peer, str(tmp_path / "peer.ckpt"))
    arguments = ["tools/import_weights.py", "peer.ckpt", "--model", "mobilenet_v1", "--output", "ours.ckpt"]
    done = script(*arguments, "--width", "0.25", "--classes", "10", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    checkpoint = load_checkpoint(tmp_path / "ours.ckpt")
    weight = checkpoint.weights["backbone.stem.conv.weight"].asnumpy()
    assert (weight == next(peer.get_parameters()).asnumpy()).all()
    assert "exists already" in mistake(*arguments, "--width", "0.25", cwd=tmp_path)


def test_cost_reports_the_reference_counts(script, tmp_path):
    arguments = ["--model", "shufflenet_v1", "--width", "1.0", "--groups", "3", "--image-size", "224"]
    done = script("tools/cost.py", *arguments, "--json", "cost.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads((tmp_path / "cost.json").read_text())
    assert (figures["params"], figures["macs"]) == (1865728, 137460672)
    unknown = script("tools/cost.py", "--model", "shufflenet_v3", cwd=tmp_path)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "model.name: 'shufflenet_v3' is not one of" in unknown.stderr


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 13, 0)])
def test_unsupported_python_is_one_line(monkeypatch, capsys, version):
    with monkeypatch.context() as patched:
        patched.setattr("sys.version_info", version)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "src" / "__init__.py"))
    assert left.value.code == 2
    expected = (
        f"error: Python {version[0]}.{version[1]} is not supported: MindSpore has wheels for Python 3.9, 3.10, 3.11"
    )
    assert capsys.readouterr().err.startswith(expected)
