"""No script writes over anything that exists, over what it reads, or into a run; nothing half-written is left."""

import importlib
import os
import resource
import stat
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from src.config.load import make_config
from src.errors import UserError
from src.evaluation.evaluate import Evaluation
from src.evaluation.output import write_evaluation, write_predictions
from src.evaluation.reliability import reliability_of
from src.files import making_folder, replacing, write_json
from src.outputs import MARK
from tests.conftest import ROOT

EVAL, EXPORT = ["eval", "--checkpoint", "R/best.ckpt"], ["export", "--checkpoint", "R/best.ckpt"]
COST, CHOOSE = ["tools.cost", "--model", "ghostnet"], ["tools.choose", "--max-ms", "9"]
SHOW, PLOT = ["tools.show_batch", "--config", "c.yaml"], ["tools.plot_schedule", "--config", "c.yaml"]
CHECK, IMPORT = ["tools.check_data", "--config", "c.yaml"], ["tools.import_weights", "net.ckpt", "--model", "ghostnet"]
PACK, REPORT = ["tools.make_mindrecord", "photos"], ["tools.report", "R"]
OVER = "--overwrite"
EXISTS, PART = "exists already; choose another path, or replace", "is part of the run in"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a run, a data set, and files that a careless option would replace."""
    monkeypatch.chdir(tmp_path)
    for name in ("R/checkpoints/epoch-00001.ckpt", "net.ckpt", "net.onnx", "net.onnx.json", "net.onnx.golden.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    os.link("R/checkpoints/epoch-00001.ckpt", "R/best.ckpt")
    (tmp_path / "R" / "config.yaml").write_text(MARK + make_config({}).to_yaml())
    for name in ("a.json", "e.png", "p.csv", "r.html", "R/predictions.png", "pngs/d2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "q.onnx.json").mkdir()
    (tmp_path / "dir.json").mkdir()
    (tmp_path / "lite.ms.int8").mkdir()
    (tmp_path / "trap").mkdir()
    os.mkfifo("trap/config.yaml")
    (tmp_path / "trap" / "metrics.csv").write_text("mine")
    os.symlink("a.json", "link.json")
    os.symlink("nowhere.json", "dangling.json")
    os.symlink("R", "other")
    os.link("p.csv", "pngs/linked.csv")
    for split in ("train", "val"):
        (tmp_path / "photos" / split / "china").mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "photos" / split / "china" / "0.png")
    (tmp_path / "c.yaml").write_text("data: {name: image_folder, root: photos, image_size: 32}\n")
    (tmp_path / "train.csv").write_text("path,label\nnamed.png,a\nphotos/val/china/0.png,b\n")
    (tmp_path / "val.csv").write_text("path,label\nphotos/val/china/0.png,b\n")
    Image.new("RGB", (40, 40)).save(tmp_path / "named.png")
    (tmp_path / "far").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "far" / "0.png")
    (tmp_path / "linked" / "train").mkdir(parents=True)
    os.symlink("../../far", "linked/train/china")
    os.symlink("../photos/val", "linked/val")
    (tmp_path / "c.json").write_text("data: {image_size: 32}\n")
    return tmp_path


def everything(folder):
    """Return what is in a folder: names, kinds, number of links, and contents."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_nlink,
            path.read_bytes() if path.is_file() else None,
        )
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("command", "part"),
    [
        # What exists is not replaced without --overwrite.
        ([*EVAL, "--json", "a.json"], f"--json a.json: {EXISTS}"),
        ([*EVAL, "--json", "e.json"], f"--json e.png: {EXISTS}"),
        ([*EVAL, "--images", "photos", "--csv", "p.csv"], f"--csv p.csv: {EXISTS}"),
        ([*EVAL, "--images", "photos"], f"--csv R/predictions.png: {EXISTS}"),
        ([*EXPORT, "--output", "net.onnx"], f"--output net.onnx: {EXISTS}"),
        ([*EXPORT, "--output", "net.onnx", "--golden", "e.png"], f"--output net.onnx: {EXISTS}"),
        ([*EXPORT, "--output", "lite.ms", "--precision", "int8"], "--output lite.ms.int8: exists already, and is not"),
        ([*COST, "--json", "a.json"], f"--json a.json: {EXISTS}"),
        ([*COST, "--plot", "e.png"], f"--plot e.png: {EXISTS}"),
        ([*CHOOSE, "--plot", "e.png"], f"--plot e.png: {EXISTS}"),
        (["tools.guidelines", "--json", "a.json"], f"--json a.json: {EXISTS}"),
        ([*CHECK, "--json", "a.json"], f"--json a.json: {EXISTS}"),
        ([*SHOW, "--output", "e.png"], f"--output e.png: {EXISTS}"),
        ([*PLOT, "--output", "e.png"], f"--output e.png: {EXISTS}"),
        ([*REPORT, "--output", "r.html"], f"--output r.html: {EXISTS}"),
        ([*IMPORT, "--output", "net.ckpt"], "--output net.ckpt: is an input, SOURCE"),
        ([*PACK, "pngs"], "OUT pngs: exists already, and is not replaced (found a folder)"),
        ([*PACK, "dangling.json"], "OUT dangling.json: exists already, and is not replaced (found a link)"),
        ([*PACK, "new/../pngs"], "exists already, and is not replaced (found a folder)"),
        (["benchmarks.data_pipeline", "--json", "a.json"], f"--json a.json: {EXISTS}"),
        (["benchmarks.exported_files", "net.onnx", "--json", "a.json"], f"--json a.json: {EXISTS}"),
        (["benchmarks.lite_against_mindcv", "--json", "a.json"], f"--json a.json: {EXISTS}"),
        (["benchmarks.logging_overhead", "--json", "a.json"], f"--json a.json: {EXISTS}"),
        (["benchmarks.train_step", "--json", "a.json"], f"--json a.json: {EXISTS}"),
        (["tools.prepare_imagenet", "photos", "a.json"], "OUT a.json: "),
        # Some paths are never replaced.
        ([*EVAL, "--json", "dir.json", OVER], "--json dir.json: exists already, and is not replaced (found a folder)"),
        ([*EVAL, "--json", "link.json", OVER], "--json link.json: exists already, and is not replaced (found a link)"),
        (
            [*EVAL, "--json", "dangling.json"],
            "--json dangling.json: exists already, and is not replaced (found a link)",
        ),
        ([*EXPORT, "--output", "q.onnx", OVER], "--output q.onnx.json: exists already, and is not replaced"),
        # A checkpoint and the other parts of a run stay, and so do inputs.
        ([*EVAL, "--images", "photos", "--csv", "R/best.ckpt", OVER], "--csv R/best.ckpt: must end with .csv"),
        ([*EVAL, "--json", "R/last.ckpt", OVER], "--json R/last.ckpt: must end with .json"),
        ([*EVAL, "--json", "R/summary.json"], f"--json R/summary.json: {PART}"),
        ([*EVAL, "--json", "other/summary.json"], f"--json other/summary.json: {PART}"),
        ([*EVAL, "--json", "R/new/../summary.json"], f"summary.json: {PART}"),
        ([*EVAL, "--json", "R/curves.json", OVER], f"--json R/curves.png: {PART}"),
        ([*EVAL, "--images", "photos", "--csv", "R/metrics.csv", OVER], f"--csv R/metrics.csv: {PART}"),
        ([*COST, "--json", "R/checkpoints/a.json"], f"--json R/checkpoints/a.json: {PART}"),
        ([*REPORT, "--output", "R/events/r.html"], f"--output R/events/r.html: {PART}"),
        ([*IMPORT, "--output", "R/best.ckpt", OVER], f"--output R/best.ckpt: {PART}"),
        ([*IMPORT, "--output", "net.ckpt", OVER], "--output net.ckpt: is an input, SOURCE"),
        (
            [*EVAL, "--images", "pngs", "--csv", "pngs/d2.csv", OVER],
            "--csv pngs/d2.csv: is in a folder of inputs (--images",
        ),
        ([*EVAL, "--images", "pngs", "--csv", "new.d/../pngs/x.csv"], "is in a folder of inputs (--images: pngs)"),
        ([*EVAL, "--images", "e.png", "--csv", "e.csv", OVER], "--csv e.png: is an input, --images"),
        (["eval", "--checkpoint", "net.onnx", "--json", "net.onnx.json", OVER], "--json net.onnx.json: is an input"),
        (["tools.cost", "--config", "c.json", "--json", "c.json", OVER], "--json c.json: is an input, --config"),
        ([*SHOW, "--output", "photos/train/china/b.png"], "is in a folder of inputs (data.root, train: photos/train)"),
        ([*SHOW, "--output", "photos/val/china/0.png", OVER], "is in a folder of inputs (data.root, val: photos/val)"),
        ([*CHECK, "--json", "photos/val/x.json"], "is in a folder of inputs (data.root, val: photos/val)"),
        ([*PACK, "photos/train/packed"], "OUT photos/train/packed: is in a folder of inputs (data.root, train"),
        (["benchmarks.exported_files", "net.onnx", "--json", "net.onnx.json", OVER], "is an input, FILE net.onnx.json"),
        # Wrong names and places are found before the work.
        ([*EVAL, "--json", "rep.png"], "--json rep.png: must end with .json"),
        ([*EVAL, "--json", ""], "--json : must end with .json"),
        ([*CHOOSE, "--json", "a.txt"], "--json a.txt: must end with .json"),
        ([*COST, "--json", "a.json/b.json"], "a.json is not a folder; choose another path"),
        (
            [*COST, "--json", "x" * 240 + ".json"],
            "--json: the name is too long (found 245 bytes, expected at most 230)",
        ),
        ([*PACK, "a.json/packed"], "a.json is not a folder"),
        ([*COST, "--json", "/proc/new/a.json"], "--json /proc/new/a.json: the folder /proc cannot be written"),
        ([*EVAL, "--images", "photos", "--csv", "trap/metrics.csv"], f"--csv trap/metrics.csv: {EXISTS}"),
        ([*EXPORT, "--output", "R/checkpoints/n.onnx"], f"--output R/checkpoints/n.onnx: {PART}"),
        ([*EVAL, "--json", "A.JSON"], "--json A.JSON: must end with .json"),
        (
            [*SHOW, "--output", "named.png", OVER, "data.name=csv", "data.root=."],
            "--output named.png: is an input, image named.png",
        ),
        ([*SHOW, "--output", "far/0.png", OVER, "data.root=linked"], "is an input, image linked/train/china/0.png"),
        ([*EVAL, "--json", ".json"], "--json .json: must end with .json"),
        ([*PACK, "photos"], "OUT photos: exists already, and is not replaced (found a folder)"),
        ([*SHOW, "--output", "R/checkpoints/../curves.png"], f"curves.png: {PART}"),
        (["benchmarks.train_step", "--json", "a.csv"], "--json a.csv: must end with .json"),
    ],
    ids=lambda value: " ".join(value)[:80] if isinstance(value, list) else "",
)
def test_a_path_that_would_do_harm_is_refused_before_the_work(place, monkeypatch, command, part):
    module = importlib.import_module(command[0])
    before = everything(place)
    monkeypatch.setattr("sys.argv", [command[0], *command[1:]])
    with pytest.raises(UserError) as caught:
        module.main()
    assert part in str(caught.value)
    assert everything(place) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_found_before_the_work(place, monkeypatch):
    (place / "pngs").chmod(0o500)
    monkeypatch.setattr("sys.argv", ["cost", "--model", "ghostnet", "--json", "pngs/a.json"])
    with pytest.raises(UserError, match=r"--json pngs/a.json: the folder .*pngs cannot be written"):
        importlib.import_module("tools.cost").main()


def test_overwrite_replaces_the_files_that_the_options_name_and_no_others(place, monkeypatch):
    before = everything(place)
    arguments = ["--json", "a.json", "--plot", "e.png", "--overwrite", "--image-size", "32"]
    monkeypatch.setattr("sys.argv", ["cost", "--model", "mobilenet_v1", "--width", "0.25", *arguments])
    importlib.import_module("tools.cost").main()
    after = everything(place)
    assert {name for name in before if before[name] != after.pop(name)} == {"a.json", "e.png", "link.json"}
    assert after == {}
    assert Image.open(place / "e.png").size[0] > 300


def evaluation():
    confusion = np.array([[3, 1], [0, 4]])
    reliability = reliability_of(np.linspace(0.5, 1, 8), np.arange(8) > 0)
    return Evaluation(0.5, 0.875, 1.0, 8, confusion, reliability)


def write_table(path):
    image = np.zeros((8, 8, 3), np.uint8)
    write_predictions(["a.png"] * 400, [image] * 4, np.full((400, 2), 0.5), ["a", "b"], path.with_suffix(".csv"))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_evaluation(evaluation(), ["a", "b"], path),
        write_table,
        lambda path: write_json(list(range(5000)), path),
    ],
)
def test_a_full_disk_leaves_nothing_and_changes_nothing(tmp_path, write):
    for name in ("e.png", "e.json", "e.csv"):
        (tmp_path / name).write_text("earlier")
    before = everything(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a larger file is an OSError, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "e.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert everything(tmp_path) == before


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_and_folders_honour_the_umask(tmp_path, umask):
    write_json({}, tmp_path / "a.json")
    with replacing(tmp_path / "b.ckpt") as partial:
        partial.write_text("weights")
        partial.chmod(0o400)  # as MindSpore's files
    with making_folder(tmp_path / "packed") as partial:
        (partial / "c.mindrecord").write_text("images")
        (partial / "c.mindrecord").chmod(0o400)
    for name in ("a.json", "b.ckpt", "packed/c.mindrecord"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "packed").stat().st_mode) == 0o777 & ~umask
    assert os.umask(umask) == umask


def test_a_folder_whose_making_fails_leaves_nothing(tmp_path):
    def fail():
        with making_folder(tmp_path / "packed") as partial:
            (partial / "half").write_text("h")
            raise UserError("no")

    with pytest.raises(UserError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_compilation_that_fails_leaves_no_folder_of_mindspore(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import src, mindspore as ms\n"
        "from mindspore import nn, ops\n"
        "class Wrong(nn.Cell):\n"
        "    def construct(self, x):\n"
        "        return ops.matmul(x, ops.ones((3, 3), ms.float32))\n"
        "ms.set_context(mode=ms.GRAPH_MODE)\n"
        "Wrong()(ms.Tensor([[1.0, 2.0]]))\n"
    )
    # MindSpore finds the code of a cell in a file only.
    (tmp_path / "wrong.py").write_text(code)
    done = subprocess.run([sys.executable, "wrong.py"], cwd=tmp_path, capture_output=True, text=True)
    assert "must be equal to shape2[-2]" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.py"]
