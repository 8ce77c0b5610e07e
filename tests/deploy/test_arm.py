"""Exported files on emulated 64-bit ARM: the same answers as on this machine, for 40 images each.

The files are run by the C++ example, which the cross compiler builds from the unchanged source, and by ONNX Runtime and
ncnn in an emulated Python.
"""

import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.deploy.runtimes.lite import Lite
from src.deploy.runtimes.process import RuntimeProcess
from src.files import cache_folder
from tests.conftest import ROOT
from tests.deploy.conftest import KINDS, LITE

ARM = cache_folder() / "arm64"
PYTHON = ARM / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.is_file(), reason="nothing is prepared for ARM: run tools/setup_arm.sh"),
]
needs_lite = pytest.mark.skipif(LITE is None, reason="MindSpore Lite is not installed: run tools/setup_lite.sh")
IMAGES = 40
LIMITS = {"max_drop": 100.0, "min_agreement": 0.0}


@pytest.fixture(scope="module")
def images(case):
    """Digits as the network sees them, uint8 (IMAGES, 16, 16, 1)."""
    samples = load_samples(case.checkpoint.config.data, "test", case.checkpoint.classes).take(np.arange(0, 360, 9))
    ((images, _),) = eval_loader(case.checkpoint.config, samples, batch_size=IMAGES).epoch()
    return images


def check(found, expected):
    """Check the probabilities of IMAGES images: the same top-1 class, and at most 1e-5 apart."""
    found, expected = np.array(found), np.array(expected)
    assert found.shape == expected.shape == (IMAGES, 10)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert len(set(expected.argmax(1))) > 5  # the file does not ignore its input


def run_all(process, path, images):
    """Return the probabilities of all images from a process with a runtime, which then ends."""
    with process:
        process.load(path, threads=1)
        return np.concatenate([process.run(image[None]) for image in images])


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_onnx(case, exported, images, precision, tmp_path):
    path = exported["onnx"]
    if precision == "int8":
        path = tmp_path / "int8.onnx"
        case.export(path, precision="int8", min_images=20, **LIMITS)
    session = onnxruntime.InferenceSession(str(path))
    expected = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    check(run_all(RuntimeProcess("ONNX Runtime", "onnxruntime", str(PYTHON)), path, images), expected)


@pytest.mark.skipif("ncnn" not in KINDS, reason="ncnn is not installed: run pip install ncnn")
def test_ncnn(exported, images):
    expected = run_all(RuntimeProcess("ncnn", "ncnn", sys.executable), exported["ncnn"], images)
    check(run_all(RuntimeProcess("ncnn", "ncnn", str(PYTHON)), exported["ncnn"], images), expected)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Build the C++ example for ARM; return the command that runs it under the emulator."""
    root = ARM / "root"
    environment = {
        **os.environ,
        "CXX": "aarch64-linux-gnu-g++",
        "CXXFLAGS": f"-idirafter {root}/usr/include",
        "LDFLAGS": f"-L{root}/usr/lib/aarch64-linux-gnu",
    }
    path = tmp_path_factory.mktemp("program") / "classify"
    build = [ROOT / "examples" / "lite_cpp" / "build.sh", ARM / "lite" / "mindspore_lite", path]
    done = subprocess.run(build, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes()[18:20] == (183).to_bytes(2, "little")  # the ELF header's number of AArch64
    return ["qemu-aarch64-static", "-L", root, path]


@needs_lite
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_cpp_example(case, exported, images, program, tmp_path, precision):
    path = exported["ms"]
    if precision == "float16":
        path = tmp_path / "half.ms"
        case.export(path, precision="float16", **LIMITS)
    assert case.checkpoint.config.data.crop_fraction == 1  # so the preprocessing changes no pixel of the files
    files = [tmp_path / f"{i}.png" for i in range(IMAGES)]
    for image, file in zip(images, files):
        Image.fromarray(image[..., 0]).save(file)
    done = subprocess.run([*program, path, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = run_all(Lite(LITE), path, images)
    # The program prints the five most probable classes.
    found = np.where(np.argsort(np.argsort(-expected)) < 5, np.nan, expected)
    for i, table in enumerate(done.stdout.split(f"{tmp_path}/")[1:]):
        for line in table.splitlines()[1:]:
            probability, name = line.split("  ", 1)
            found[i, int(name)] = float(probability)
    check(found, expected)
