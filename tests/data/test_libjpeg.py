import io
import os
import subprocess
import sys

import numpy as np
import pytest
from mindspore.dataset import vision
from PIL import Image

from tests.conftest import ROOT

# Prints the hashes of the pixels of all images: first decoded completely, then as a random resized crop with flips.
PIXELS = """
import hashlib, sys
import numpy as np
import mindspore.dataset as ds
from mindspore.dataset import vision
ds.config.set_seed(5)
operations = [vision.Decode(), [vision.RandomCropDecodeResize(48), vision.RandomHorizontalFlip()]]
for rows in operations:
    files = ds.GeneratorDataset([(np.fromfile(path, np.uint8),) for path in sys.argv[1:] * 8], ["image"], shuffle=False)
    files = files.map(rows, "image", num_parallel_workers=1)
    pixels = hashlib.sha256()
    for (image,) in files.create_tuple_iterator(num_epochs=1, output_numpy=True):
        pixels.update(image.tobytes())
    print(pixels.hexdigest())
"""


def in_fresh_process(program, *arguments, **variables):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "4", **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def kinds(photos, tmp_path):
    """JPEGs of odd sizes with each chroma subsampling, baseline and progressive, and a gray JPEG."""
    photo = Image.open(next((photos / "train").rglob("*.jpg"))).resize((131, 93))
    for name, options in {"420": {}, "444": {"subsampling": 0}, "422": {"subsampling": 1}}.items():
        photo.save(tmp_path / f"{name}.jpg", quality=90, **options)
        photo.save(tmp_path / f"{name}-progressive.jpg", progressive=True, **options)
    photo.convert("L").save(tmp_path / "gray.jpg")
    return sorted(tmp_path.glob("*.jpg"))


def test_mindspore_decodes_with_pillows_library(tmp_path):
    in_fresh_process("import src, mindspore.dataset", LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(tmp_path / "linker"))
    bound = {}
    for file in tmp_path.glob("linker.*"):
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if "_c_dataengine" in line and "normal symbol `jpeg_" in line:
                    bound[line.split("`")[1].split("'")[0]] = line.split(" to ")[1].split()[0]
        file.unlink()  # A file has 70 MB.
    for function in ("jpeg_CreateDecompress", "jpeg_read_scanlines", "jpeg_crop_scanline", "jpeg_skip_scanlines"):
        assert "libjpeg" in os.path.basename(bound[function])


def test_the_pixels_equal_the_pixels_of_mindspores_library(kinds):
    expected = in_fresh_process(PIXELS, *kinds)
    assert len(expected.split()) == 2
    assert in_fresh_process("import src\n" + PIXELS, *kinds) == expected


def test_the_pixels_equal_the_pixels_of_pillow(kinds):
    for file in kinds:
        content = file.read_bytes()
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert (vision.Decode()(np.frombuffer(content, np.uint8)) == expected).all()
