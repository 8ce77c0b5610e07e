"""The tools as a user runs them: what they print, which files they write, and how they report mistakes."""

import importlib.util
import json
import math
import re
import subprocess
import sys

import onnxruntime
import pytest
from PIL import Image

from src.models import NETWORKS
from tests.conftest import ROOT
from tests.cost.test_zoo import ZOO

CONFIG = ROOT / "configs" / "shufflenet_v2" / "fashion_mnist.yaml"
SCRIPTS = ["train.py", "eval.py", "export.py", *sorted(f"tools/{path.name}" for path in ROOT.glob("tools/*.py"))]
READS_CONFIG = [name for name in SCRIPTS if '"--config"' in (ROOT / name).read_text()]


# Runs the script that the first argument names, and prints its exit code and the slow modules that it imported.
@pytest.mark.slow
def test_profile_of_a_config_agrees_with_its_layers(script, tmp_path):
    files = ["--json", "out/cost.json", "--plot", "out/cost.png"]
    done = script("tools/cost.py", "--config", CONFIG, *files, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    cost = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert (cost["image_size"], cost["channels"], cost["classes"], cost["width"]) == (28, 1, 1000, 0.5)
    # ShuffleNetV2 0.5x has 1,366,792 parameters for 3 input channels. Here the 24 filters of 3x3 of the stem have 1.
    assert cost["params"] == 1366792 - 2 * 24 * 9
    assert cost["macs"] == sum(layer["macs"] for layer in cost["layers"])
    assert cost["bytes"] == sum(block["bytes"] for block in cost["blocks"])
    # The stem keeps the size and there is no max-pool: 28x28 feature maps of 24 channels.
    assert cost["layers"][0] | {"params": 24 * 9, "macs": 24 * 9 * 28 * 28, "output": [24, 28, 28]} == cost["layers"][0]
    for layer in cost["layers"]:
        assert layer["name"] in done.stdout
    assert Image.open(tmp_path / "out" / "cost.png").size[0] > 800


@pytest.mark.slow
def test_profile_of_all_variants(script, tmp_path):
    done = script("tools/cost.py", "--all", "--image-size", "32", "--json", "all.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    variants = json.loads((tmp_path / "all.json").read_text())["variants"]
    params = {(row["model"], row["width"], row["groups"], row["layout"]): row["params"] for row in variants}
    for row in ZOO:
        layout = "authors" if row["model"] == "shufflenet_v2" else None
        groups = int(row["groups"]) if row["groups"] else None
        assert params[row["model"], float(row["width"]), groups, layout] == int(row["params"])
    # ShuffleNetV1 with 5 group counts, ShuffleNetV2 with 2 layouts, at 4 widths each.
    assert len(variants) == len(params) == sum(len(network.variants) for network in NETWORKS.values()) + 4 * 4 + 4
    assert done.stdout.count("\n") == 1 + len(variants)


@pytest.mark.slow
def test_choose_by_parameters_and_macs_measures_nothing(script, tmp_path):
    limits = ["--max-params", "3e6", "--max-macs", "150e6"]
    files = ["--json", "c.json", "--plot", "c.png"]
    done = script("tools/choose.py", *limits, *files, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads((tmp_path / "c.json").read_text())
    fitting = {(row["model"], row["width"], row["groups"]) for row in content["variants"] if row["fits"]}
    expected = {
        (row["model"], float(row["width"]), int(row["groups"]) if row["groups"] else None)
        for row in ZOO
        if int(row["params"]) <= 3e6 and int(row["macs"]) <= 150e6
    }
    assert fitting == expected | {("mobilenet_v3_small", 0.75, None)}
    assert {row["ms"] for row in content["variants"]} == {None}
    # shufflenet_v2 1.0 has the best published top-1 of the networks that fit.
    assert "the most accurate: shufflenet_v2 1.0" in done.stdout
    assert Image.open(tmp_path / "c.png").size[0] > 800


@pytest.mark.slow
def test_choose_measures_only_networks_within_the_other_limits(script, tmp_path):
    limits = ["--max-ms", "60000", "--max-params", "2e6", "--repeats", "2", "--model", "shufflenet_v2"]
    limits += ["--runtime", "mindspore"]
    done = script("tools/choose.py", *limits, "--image-size", "32", "--json", "c.json", "--plot", "c.png", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads((tmp_path / "c.json").read_text())["variants"]
    assert [(row["width"], row["ms"] is not None, row["fits"]) for row in rows] == [
        (0.5, True, True),
        (1.0, False, False),
        (1.5, False, False),
        (2.0, False, False),
    ]
    late = script("tools/choose.py", *limits, "--image-size", "32", "--seconds", "1e-6", cwd=tmp_path)
    assert (late.returncode, late.stderr) == (0, "")
    assert "not measured, for lack of time (--seconds 1e-06): shufflenet_v2 0.5\n" in late.stdout


@pytest.mark.slow
def test_files_are_timed_on_their_runtime_and_cached(command, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    limits = ["--max-ms", "60000", "--max-params", "2e6", "--repeats", "2", "--model", "shufflenet_v2"]
    size = ["--image-size", "32", "--precision", "int8", "--json", "c.json"]
    done = command("tools/choose.py", *limits, *size, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads((tmp_path / "c.json").read_text())
    assert (content["runtime"], content["precision"], content["threads"]) == ("onnx", "int8", 1)
    assert [row["ms"] is not None for row in content["variants"]] == [True, False, False, False]
    (file,) = (tmp_path / "cache" / "pocketspore" / "fresh").iterdir()
    session = onnxruntime.InferenceSession(str(file))
    assert session.get_inputs()[0].shape == [1, 32, 32, 3]
    assert session.get_outputs()[0].shape == [1, 1000]
    written = file.stat().st_mtime_ns
    again = command("tools/choose.py", *limits, *size, "--overwrite", cwd=tmp_path)
    assert (again.returncode, file.stat().st_mtime_ns) == (0, written)
    if importlib.util.find_spec("ncnn") is not None:
        ncnn = ["--runtime", "ncnn", "--image-size", "32", "--json", "n.json"]
        done = command("tools/choose.py", *limits, *ncnn, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        rows = json.loads((tmp_path / "n.json").read_text())["variants"]
        assert [row["ms"] is not None for row in rows] == [True, False, False, False]
        assert sorted(path.suffix for path in file.parent.iterdir()) == [".bin", ".onnx", ".param"]


@pytest.mark.slow
def test_guidelines_are_compared_with_the_paper(script, tmp_path):
    small = ["--channels", "16", "--image-size", "8", "--repeats", "2"]
    wrong = script("tools/guidelines.py", *small, "--runtime", "mindspore", "--threads", "2", cwd=tmp_path)
    assert wrong.stderr == "error: --threads 2: is not used with --runtime mindspore; leave it out\n"
    done = script(
        "tools/guidelines.py", *small, "--runtime", "mindspore", "--json", "g.json", "--plot", "g.png", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = json.loads((tmp_path / "g.json").read_text())["lines"]
    assert [line["guideline"] for line in lines] == ["G1"] * 4 + ["G2"] * 4 + ["G3"] * 5 + ["G4"] * 4
    for guideline, last in {"G1": 57.6 / 76.2, "G2": 27.8 / 40.0, "G3": 35.0 / 40.2, "G4": 20.2 / 16.9}.items():
        table = [line for line in lines if line["guideline"] == guideline]
        assert (table[0]["relative"], table[0]["paper_relative"]) == (1, 1)
        assert table[-1]["paper_relative"] == pytest.approx(last)
        assert table[-1]["relative"] == pytest.approx(table[-1]["images_per_second"] / table[0]["images_per_second"])
    # Ten blocks of two 1x1 convolutions, 8 channels to 8, on feature maps of 8x8.
    assert lines[0]["macs"] == 10 * 2 * 8 * 8 * 8 * 8
    assert Image.open(tmp_path / "g.png").size[0] > 800


@pytest.mark.slow
def test_plot_schedule_of_two_configs(script, tmp_path):
    (tmp_path / "a.yaml").write_text("schedule: {name: step, step_epochs: 2}\ntrain: {epochs: 4}\n")
    (tmp_path / "b.yaml").write_text("optimizer: {name: adamw, lr_batch: 16}\ntrain: {epochs: 2, accumulate: 2}\n")
    files = ["--config", "a.yaml", "--config", "b.yaml", "--output", "out/lr.png"]
    done = script("tools/plot_schedule.py", *files, "train.batch_size=32", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    # The training split has 1,433 digits: 44 batches of 32 images, or 22 updates of 64 images.
    assert "(1) a.yaml: 4 epochs of 44 updates\n(2) b.yaml: 2 epochs of 22 updates\n" in done.stdout
    table = [line.split() for line in done.stdout.splitlines()[4:]]
    last = 0.5 * (1 + math.cos(math.pi * 43 / 44)) * 0.004
    assert table == [
        ["0", "0.1", "0.004"],
        ["1", "0.1", "0.002"],
        ["2", "0.01", f"{last:.4g}"],
        ["3", "0.01"],
        ["4", "0.01"],
    ]
    assert Image.open(tmp_path / "out" / "lr.png").size[0] > 800


@pytest.mark.slow
def test_plan_follows_its_arithmetic(script, tmp_path):
    (tmp_path / "c.yaml").write_text("model: {name: mobilenet_v2}\ntrain: {epochs: 10, batch_size: 100}\n")
    devices = ["--device", "v100", "--devices", "4", "--images", "1000000"]
    done = script("tools/plan.py", "--config", "c.yaml", *devices, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    heads, row = (re.split(r"  +", line) for line in done.stdout.splitlines()[2:])
    found = {head: float(value.replace(",", "")) for head, value in zip(heads[1:], row[1:])}
    params, macs = 3504872, 300774272
    assert found["M MACs"] == pytest.approx(macs / 1e6, abs=0.05)
    assert found["us comp."] == pytest.approx(6 * macs / (0.3 * 125e12) * 1e6, abs=0.05)
    assert found["us mem."] == pytest.approx(found["MB moved"] / (0.6 * 0.9), rel=1e-3)
    assert found["img/s 1"] == pytest.approx(1e6 / found["us mem."], rel=1e-3)
    assert found["img/s N"] == pytest.approx(4 * found["img/s 1"], abs=4)
    assert found["days"] == pytest.approx(10 * 1e6 / found["img/s N"] / 86400, abs=0.006)
    # Four float32 numbers per parameter: weight, gradient, and the two of momentum SGD.
    assert found["GB fixed"] == pytest.approx(16 * params / 1e9, abs=0.006)
    assert found["largest"] == pytest.approx((32 - 16 * params / 1e9) / (found["GB maps"] / 100), abs=1.5)
    assert found["ms sent"] == pytest.approx(2 * 3 / 4 * 4 * params / 12.5e9 * 1e3, abs=0.05)


@pytest.mark.parametrize("name", SCRIPTS)
def test_missing_requirements_are_one_line(name):
    # -S leaves out site-packages, which hold NumPy, MindSpore, pydantic and PyYAML; -E leaves out PYTHONPATH.
    done = subprocess.run([sys.executable, "-S", "-E", ROOT / name, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: MindSpore is not installed in .+\n", done.stderr)


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        *((name, ["--help"], 0) for name in SCRIPTS),
        *((name, ["--unknown-option"], 2) for name in SCRIPTS),
        *((name, ["--config", "missing.yaml"], 2) for name in READS_CONFIG),
        ("tools/make_mindrecord.py", ["missing.yaml", "packed"], 2),
    ],
)
def test_answers_before_work_starts_import_nothing_slow(name, arguments, code):
    command = [sys.executable, "-X", "importtime", name, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    lines = done.stderr.splitlines(keepends=True)
    imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    assert "src.errors" in imported
    assert not {"mindspore", "numpy"} & imported
    assert re.fullmatch(r"error: .+\n" if code else "", "".join(line for line in lines if "import time:" not in line))


@pytest.mark.parametrize(
    ("tool", "arguments", "part"),
    [
        ("cost", [], "one of the arguments --model --config --all is required"),
        ("cost", ["--model", "ghostnet", "--all"], "--all: not allowed with argument --model"),
        ("cost", ["--config", CONFIG, "--width", "1.0"], "--width: cannot be used with --config"),
        ("cost", ["--all", "--groups", "3"], "--groups: cannot be used with --all"),
        ("cost", ["--config", "nowhere.yaml"], "--config: nowhere.yaml: no such file"),
        (
            "cost",
            ["--model", "ghostnet", "--image-size", "0"],
            "--image-size: must be a whole number from 8 to 1,024 (found 0)",
        ),
        ("cost", ["--model", "ghostnet", "--plot", "p.pdf"], "--plot p.pdf: must end with .png"),
        ("choose", [], "a limit must be given: --max-ms, --max-params or --max-macs"),
        ("choose", ["--max-ms", "-1"], "--max-ms: must be a number above 0, at most 1,000,000,000 (found -1)"),
        ("choose", ["--max-macs", "nan"], "--max-macs: must be a number above 0"),
        (
            "choose",
            ["--max-macs", "many"],
            "--max-macs: must be a number above 0, at most 1,000,000,000,000,000 (found many)",
        ),
        ("choose", ["--max-macs", "1e9", "--model", "ghost"], "--model ghost: is not one of"),
        (
            "choose",
            ["--max-macs", "1e9", "--runtime", "mindspore", "--device", "gpu"],
            "runtime.device: gpu is not available here",
        ),
        ("choose", ["--max-macs", "1e9", "--device", "gpu"], "--device gpu: is not used with --runtime onnx"),
        ("choose", ["--max-ms", "9", "--runtime", "lite", "--precision", "int8"], "needs --runtime onnx (found lite)"),
        (
            "plot_schedule",
            ["--config", CONFIG, "--ranks", "0"],
            "--ranks: must be a whole number from 1 to 100,000 (found 0)",
        ),
        ("plot_schedule", ["--config", CONFIG, "--output", "p.pdf"], "--output p.pdf: must end with .png"),
        ("plot_schedule", ["--config", CONFIG, "data.name=digits", "data.root=null", "--ranks", "99"], "has only 1433"),
        (
            "plot_schedule",
            ["--config", CONFIG, "schedule.name=step"],
            "schedule.step_epochs: must be given with schedule.name=step",
        ),
        ("plan", ["--config", CONFIG, "--device", "a10"], "--device a10: is not one of ascend910, a100, v100"),
        (
            "plan",
            ["--config", CONFIG, "--devices", "0"],
            "--devices: must be a whole number from 1 to 1,000,000 (found 0)",
        ),
        ("guidelines", ["--channels", "4"], "--channels: must be a whole number from 8 to 512 (found 4)"),
        ("guidelines", ["--runtime", "mindspore", "--device", "tpu"], "runtime.device: 'tpu' is not one of"),
    ],
)
def test_mistakes_are_one_line(mistake, tmp_path, tool, arguments, part):
    assert part in mistake(f"tools/{tool}.py", *arguments, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
