"""The example programs find the pixels and the probabilities of an export's golden image.

The golden image is a real photograph of 1600 x 1067 pixels that EXIF turns.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.deploy.description import Description, format_of
from src.deploy.export import export
from src.deploy.golden import Golden
from src.deploy.options import Options
from src.deploy.runtimes.lite import find_lite
from src.errors import UserError
from tests.conftest import ROOT
from tests.deploy.conftest import PHOTO_CLASSES, PHOTO_SIZE

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"
LITE = find_lite()
HAS_NCNN = importlib.util.find_spec("ncnn") is not None
NCNN_CPP = os.environ.get("NCNN")  # the folder where ncnn's headers and libraries are installed
CLASSES, SIZE = PHOTO_CLASSES, PHOTO_SIZE


def build(*arguments):
    """Build a program of the C++ example; the test is left out where a compiler or a library is missing."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    done = subprocess.run([EXAMPLES / "lite_cpp" / "build.sh", *arguments], capture_output=True, text=True)
    if done.returncode == 2 and "run: apt install" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def exported(opened, photo, tmp_path_factory):
    """Export as ONNX, as ONNX for batches of tensors and, with Lite, as .ms, each with a golden image: {name: path}."""
    folder = tmp_path_factory.mktemp("exported")
    wanted = {"net.onnx": {}, "tensor.onnx": {"input": "tensor", "logits": True, "batch": 2}}
    if LITE:
        wanted["net.ms"] = {}
    if HAS_NCNN:
        wanted |= {"net.param": {}, "tensor.param": {"input": "tensor", "logits": True}}
    samples = load_samples(opened.config.data, "val", CLASSES)
    for name, options in wanted.items():
        options = Options(format=format_of(name), **options)
        loader = eval_loader(opened.config, samples, batch_size=options.batch)
        export(opened, loader, "val", folder / name, options, golden=photo(6))
    return {name: folder / name for name in wanted}


def golden_of(path):
    """Return (image file, pixels, probabilities) of the golden image beside an exported file."""
    golden = Golden.model_validate_json(Path(f"{path}.golden.json").read_text(encoding="utf-8"))
    pixels = np.asarray(Image.open(path.parent / golden.pixels)).reshape(SIZE, SIZE, -1)
    return path.parent / golden.image, pixels, np.array(golden.probabilities)


def check_pixels(found, expected):
    assert np.abs(np.int32(found) - expected).mean() <= 1


def check_table(printed, probabilities):
    rows = [line.split("  ", 1) for line in printed.splitlines()]
    assert [name for _, name in rows] == [CLASSES[i] for i in np.argsort(-probabilities)]
    assert [float(value) for value, _ in rows] == pytest.approx(sorted(probabilities, reverse=True), abs=0.02)


def test_the_golden_image_is_turned_and_described(exported, photo, opened):
    path = exported["net.onnx"]
    description = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    image, pixels, probabilities = golden_of(path)
    # Pillow's own steps, on the photograph as EXIF turns it: 1067 x 1600 pixels.
    whole = ImageOps.exif_transpose(Image.open(image)).resize((82, 122), Image.Resampling.BILINEAR)
    check_pixels(np.asarray(whole.crop((5, 25, 77, 97))), pixels)
    assert image.read_bytes() == photo(6).read_bytes()
    assert json.loads(Path(f"{path}.golden.json").read_text())["sha256"] == description["sha256"]
    wanted, data = description["preprocessing"], opened.config.data
    assert (wanted["orientation"], wanted["short_side"]) == ("exif", round(SIZE / data.crop_fraction))
    assert (wanted["long_side_rounding"], wanted["crop_rounding"]) == ("down", "half_even")
    assert (wanted["interpolation"], wanted["antialias"]) == ("bilinear", True)
    assert description["verification"]["split"] == "val"
    # Without the orientation, the photograph lies on its side.
    upright = np.asarray(Image.open(image).convert("L").rotate(-90, expand=True).resize((82, 122)))[25:97, 5:77]
    lying = np.asarray(Image.open(image).convert("L").resize((122, 82)))[5:77, 25:97]
    gray = pixels.mean(-1)
    assert np.corrcoef(gray.ravel(), upright.ravel())[0, 1] > 0.8
    assert abs(np.corrcoef(gray.ravel(), lying.ravel())[0, 1]) < 0.6
    assert np.abs(np.diff(probabilities)) > 0.05  # otherwise the top-1 class says little


@pytest.mark.parametrize("name", ["net.onnx", "tensor.onnx"])
def test_python_example(exported, tmp_path, name):
    path = exported[name]
    image, pixels, probabilities = golden_of(path)
    program = EXAMPLES / "onnx_python" / "classify.py"
    command = [sys.executable, program, path, image, tmp_path / "pixels.npy"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    check_pixels(np.load(tmp_path / "pixels.npy"), pixels)
    check_table(done.stdout, probabilities)


@pytest.fixture(scope="module")
def pixels_program(tmp_path_factory):
    """Build the program that writes the pixels after preprocessing; return its path."""
    program = tmp_path_factory.mktemp("program") / "pixels"
    build("--pixels", program)
    return program


def test_cpp_preprocessing(exported, photo, pixels_program, tmp_path):
    path = exported["net.onnx"]
    image, pixels, _ = golden_of(path)

    def run(*arguments):
        return subprocess.run([pixels_program, *arguments, tmp_path / "out.ppm"], capture_output=True, text=True)

    done = run(f"{path}.json", image)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == CLASSES
    check_pixels(np.asarray(Image.open(tmp_path / "out.ppm")), pixels)
    # All orientations, and PNG, against Pillow.
    for orientation, suffix in [*((number, ".jpg") for number in range(1, 9)), (1, ".png"), (8, ".png")]:
        file = photo(orientation, suffix)
        assert run(f"{path}.json", file).returncode == 0
        check_pixels(np.asarray(Image.open(tmp_path / "out.ppm")), with_pillow(file, path))
    for wrong, message in (((f"{path}.json", __file__), "is not a JPEG or PNG image"), ((image, image), "is not JSON")):
        done = run(*wrong)
        assert done.returncode == 2
        assert message in done.stderr


def with_pillow(file, path):
    """Return the pixels that the Python example finds; `test_python_example` compares them with the evaluation's."""
    sys.path.insert(0, str(EXAMPLES / "onnx_python"))
    try:
        from preprocess import preprocess
    finally:
        sys.path.pop(0)
    return preprocess(file, json.loads(Path(f"{path}.json").read_text(encoding="utf-8")))


def test_old_descriptions_are_read_by_the_programs(exported, photo, pixels_program, tmp_path):
    """A description without the newer keys means bilinear interpolation without antialiasing."""
    description = json.loads(Path(f"{exported['net.onnx']}.json").read_text(encoding="utf-8"))
    new = ("orientation", "interpolation", "antialias", "short_side", "long_side_rounding", "crop_rounding")
    for key in new:
        del description["preprocessing"][key]
    (tmp_path / "old.onnx.json").write_text(json.dumps(description))
    read = Description.model_validate(description).preprocessing
    assert [getattr(read, key) for key in new] == ["exif", "bilinear", False, None, "down", "down"]
    command = [pixels_program, tmp_path / "old.onnx.json", photo(6), tmp_path / "out.ppm"]
    subprocess.run(command, check=True, capture_output=True)
    check_pixels(np.asarray(Image.open(tmp_path / "out.ppm")), with_pillow(photo(6), tmp_path / "old.onnx"))


@pytest.mark.skipif(LITE is None, reason="MindSpore Lite is not installed: run tools/setup_lite.sh")
def test_cpp_example(exported, tmp_path):
    build(LITE, tmp_path / "classify")
    path = exported["net.ms"]
    image, _, probabilities = golden_of(path)
    done = subprocess.run([tmp_path / "classify", path, image], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_table(done.stdout, probabilities)


@pytest.mark.skipif(not HAS_NCNN, reason="ncnn is not installed: run pip install ncnn")
@pytest.mark.parametrize("name", ["net.param", "tensor.param"])
def test_ncnn_examples(exported, tmp_path, name):
    path = exported[name]
    image, _, probabilities = golden_of(path)
    programs = [[sys.executable, EXAMPLES / "ncnn_python" / "classify.py"]]
    if NCNN_CPP:
        command = [EXAMPLES / "ncnn_cpp" / "build.sh", NCNN_CPP, tmp_path / "classify"]
        subprocess.run(command, check=True)
        programs.append([tmp_path / "classify"])
    for program in programs:
        done = subprocess.run([*program, path, image], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        check_table(done.stdout, probabilities)


def test_a_missing_library_is_one_line(tmp_path):
    (tmp_path / "g++").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "g++").chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "CXX": str(tmp_path / "g++")}
    done = subprocess.run([EXAMPLES / "lite_cpp" / "build.sh"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: stb/stb_image.h was not found by {tmp_path}/g++; on Debian or Ubuntu, run: apt install libstb-dev\n"
    )


def test_golden_image_of_a_wrong_kind(opened, tmp_path):
    loader = eval_loader(opened.config, load_samples(opened.config.data, "val", CLASSES), batch_size=1)
    bitmap = tmp_path / "photo.bmp"
    Image.new("RGB", (9, 9)).save(bitmap)
    for path, message in ((tmp_path / "none.jpg", "no such file"), (bitmap, "found BMP, expected JPEG or PNG")):
        with pytest.raises(UserError, match=f"--golden .+: .*{message}"):
            export(opened, loader, "val", tmp_path / "net.onnx", Options(format="onnx"), golden=path)
