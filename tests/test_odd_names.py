"""Names, texts, pictures and disks that nobody expects: one line of error, or the right result."""

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from src import errors, figures
from src.config.load import make_config
from src.config.schema import DataConfig
from src.data.datasets import load_samples
from src.data.folders import number_or_text
from src.data.formats import ImageError, decodable
from src.errors import UserError
from src.evaluation.output import write_predictions
from src.files import naming, replacing, write_text
from src.training.schedule import learning_rates
from tests.conftest import ROOT, run_here
from tests.test_tools import SCRIPTS

NAMES = ["猫", "مرحبا", r"$\frac{", "a$b$c", "x\ny\t", "क्षत्रिय"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_start_on_a_safe_path(name):
    # PYTHONSAFEPATH leaves the script's folder out of the path. Python before 3.11 does not know the variable.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, ROOT / name, "--help"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({"MPLBACKEND": "nonsense"}, 0, ""),
        ({"HOME": "/nonexistent", "MPLCONFIGDIR": "/proc/none"}, 0, ""),
        ({"GLOG_v": "abc"}, 2, "error: GLOG_v: must be a whole number from 0 to 4 (found abc); unset this variable\n"),
    ],
)
def test_figures_are_drawn_in_any_environment(tmp_path, variables, code, said):
    draw = "import sys; from src.figures import plot_confusion; plot_confusion([[1]], ['a'], sys.argv[1])"
    draw = draw.replace("[[1]]", "__import__('numpy').eye(1, dtype=int)")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", draw, tmp_path / "c.png"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)
    assert (tmp_path / "c.png").exists() == (code == 0)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_are_printed_in_any_encoding(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    errors.run(lambda: print("猫", "caf\udce9", flush=True))
    assert written.getvalue().decode(encoding) == ("猫" if encoding == "utf-8" else r"\u732b") + " caf\\udce9\n"


def test_figures_draw_any_name_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.plot_confusion(np.eye(len(NAMES), dtype=int), NAMES, tmp_path / "c.png")
        blank = [np.zeros((8, 8, 3), np.uint8)] * len(NAMES)
        figures.plot_contact_sheet(blank, NAMES, tmp_path / "s.png")
        row = {"epoch": 1, "train_loss": 0.0, "test_loss": 0.0, "train_top1": 1.0, "test_top1": 1.0}
        figures.plot_curves([row], {"epoch": 1, "top1": 1.0}, tmp_path / "l.png")
    assert {Image.open(path).format for path in tmp_path.iterdir()} == {"PNG"}


def test_a_dollar_sign_means_no_formula():
    figure = figures.new_figure(3, 1)
    label = figure.text(0, 0, figures.plain("$x^2$"))
    FigureCanvasAgg(figure).draw()
    assert label._preprocess_math(label.get_text()) == ("$x^2$", False)


def test_a_name_that_is_not_utf8_is_written_as_utf8(tmp_path):
    write_predictions(["caf\udce9.jpg"], [np.zeros((8, 8, 3), np.uint8)], np.ones((1, 1)), ["a"], tmp_path / "p.csv")
    write_text("caf\udce9", tmp_path / "t.txt")
    for path in (tmp_path / "p.csv", tmp_path / "t.txt"):
        assert r"caf\udce9" in path.read_text(encoding="utf-8")


def folder_of(root, *names):
    """Make an image folder with a training and a validation image for each class; return its config section."""
    for split in ("train", "val"):
        for name in names:
            folder = os.path.join(os.fsencode(root / split), name)
            os.makedirs(folder)
            Image.new("RGB", (9, 9)).save(os.fsdecode(os.path.join(folder, b"0.png")))
    return DataConfig(name="image_folder", root=str(root))


def test_a_class_folder_whose_name_is_not_utf8_is_named(tmp_path):
    data = folder_of(tmp_path, b"caf\xe9", b"tea")
    with pytest.raises(UserError, match=r"train: has a class folder whose name is not UTF-8 \(found b'caf\\xe9'\)"):
        load_samples(data, "train")


@pytest.mark.slow
def test_class_names_do_not_depend_on_the_locale(tmp_path):
    folder_of(tmp_path, "猫".encode(), b"a")
    code = "from src.data.datasets import *; data = DataConfig(name='image_folder', root='.'); "
    code += "print(ascii(load_samples(data, 'train').classes))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (r"['a', '\u732b']" + "\n", "")


def test_one_class_only_is_a_note(tmp_path):
    data = folder_of(tmp_path, b"a")
    assert "one class only, a, so each prediction is right" in load_samples(data, "train").notes[-1]
    folder_of(tmp_path, b"b")
    assert load_samples(data, "train").notes == ()


@pytest.mark.parametrize(
    ("path", "label", "said"),
    [
        ("0.png", "7" * 5000, "line 2: the label is too long (found 5,000 characters, expected at most 255)"),
        ("0.png", "x" * 256, "line 2: the label is too long"),
        ("0.png", "a\0b", "NUL"),
        ("a\0b.png", "a", "NUL"),
    ],
)
def test_odd_cells_of_a_table_are_named(tmp_path, path, label, said):
    (tmp_path / "train.csv").write_text(f"path,label\n{path},{label}\n")
    with pytest.raises(UserError) as error:
        load_samples(DataConfig(name="csv", root=str(tmp_path)), "train")
    assert said in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "train.csv"))


def test_equal_numbers_have_one_order():
    names = ["7", "07", "10", "9", "x", "007"]
    for order in (names, names[::-1]):
        assert sorted(order, key=number_or_text) == ["007", "07", "7", "9", "10", "x"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_a_picture_of_20000_pixels_is_too_large_and_not_damaged(monkeypatch, kind):
    written = io.BytesIO()
    size = (20_000, 20_000)
    if kind == "BMP":  # 400 MB; the header alone says how large the picture is
        Image.new("L", (1, 1)).save(written, kind)
        head = bytearray(written.getvalue())
        head[18:22] = head[22:26] = size[0].to_bytes(4, "little")
        written = io.BytesIO(bytes(head))
    else:
        with monkeypatch.context() as patched:
            patched.setattr(Image, "MAX_IMAGE_PIXELS", None)
            Image.new("1" if kind == "PNG" else "L", size).save(written, kind)
    with pytest.raises(ImageError, match=r"^has too many pixels \(found 400000000, expected at most 178956970\)"):
        decodable(written.getvalue())


def test_too_many_updates_are_refused():
    with pytest.raises(UserError, match=r"train.epochs: too many updates of the weights \(found 1,000,000,000"):
        learning_rates(make_config({"train": {"epochs": 10_000}}), 100_000)


def test_an_error_names_the_target_and_not_the_temporary_file(tmp_path):
    target = tmp_path / "out.json"
    with pytest.raises(OSError, match="No such file") as error, replacing(tmp_path / "none" / "out.json") as partial:
        partial.write_text("x")
    assert error.value.filename == str(tmp_path / "none" / "out.json")
    for temporary in (tmp_path / ".out.json-abc" / "part", None):
        with pytest.raises(OSError, match="full") as error, naming(target, ".out.json-"):
            raise OSError(28, "full", None if temporary is None else str(temporary))
        assert error.value.filename == str(target)
    with pytest.raises(OSError, match="full") as error, naming(target, ".out.json-"):
        raise OSError(28, "full", "other")
    assert error.value.filename == "other"


def run_on_a_full_disk(arguments, cwd, *streams):
    """Run a script that can write at most 20,000 bytes to each file, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    with contextlib.suppress(OSError):
        run_here(arguments, cwd, (), *streams)


@pytest.mark.slow
def test_a_full_disk_while_packing_is_one_line(fresh_processes, tmp_path):
    folder_of(tmp_path / "photos", b"a", b"b")
    streams = [tmp_path / "stdout", tmp_path / "stderr"]
    arguments = (["tools/make_mindrecord.py", "photos", "packed"], tmp_path, *streams)
    process = fresh_processes.Process(target=run_on_a_full_disk, args=arguments)
    process.start()
    process.join()
    error = streams[1].read_text()
    assert (process.exitcode, error.count("\n")) == (2, 1)
    assert error.startswith("error: packed: MindSpore cannot write its files: ")
    assert error.endswith("; is the disk full?\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "stderr", "stdout"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.pretrained=none.pth", "error: model.pretrained: none.pth: no such file\n"),
        ("distill.teacher=photos", "error: distill.teacher: photos: no such file\n"),
    ],
)
def test_missing_weights_are_reported_before_the_images_are_listed(mistake, tmp_path, setting, said):
    (tmp_path / "photos").mkdir()  # has no images, which a listing would report
    settings = ["data.name=image_folder", "data.root=photos", "run.dir=run", setting]
    (tmp_path / "c.yaml").write_text(json.dumps({"model": {"width": 0.5}}))
    assert mistake("train.py", "--config", "c.yaml", *settings, cwd=tmp_path) == said
    assert not (tmp_path / "run").exists()
