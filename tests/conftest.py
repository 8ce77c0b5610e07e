import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from src.errors import run

ROOT = Path(__file__).resolve().parents[1]
# The quickstart on smaller images for three epochs: about 90 % top-1 after some 20 seconds.
SMALL = [
    *("data.image_size=16", "augment.padding=1", "train.epochs=3", "train.label_smoothing=0.0"),
    *("optimizer.lr=0.02", "schedule.warmup_epochs=0.5"),
]


@pytest.fixture(scope="session")
def script():
    """Run one of the project's scripts as a user would, in a working folder of the test's."""

    def run_script(name, *arguments, cwd):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GLOG")}
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)

    return run_script


@pytest.fixture
def mistake(monkeypatch, capfd):
    """Run a script in this process, where it starts faster, and expect that it ends with exit code 2 and one error."""

    def run_here(name, *arguments, cwd):
        module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run(module.main)
        printed = capfd.readouterr().err
        assert left.value.code == 2
        assert re.fullmatch(r"error: .+\n", printed)
        return printed

    return run_here


@pytest.fixture(scope="session")
def quickstart(script, tmp_path_factory):
    """A short run on digits: (folder it ran in, run folder, finished process)."""
    cwd = tmp_path_factory.mktemp("quickstart")
    config = ROOT / "configs" / "quickstart.yaml"
    done = script("train.py", "--config", config, "run.dir=run", *SMALL, cwd=cwd)
    return cwd, cwd / "run", done


@pytest.fixture
def photos(tmp_path):
    """An image folder with two classes, cut from scikit-learn's two photographs: 12 training and 4 test JPEGs each."""
    root = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images):
        for split, count in (("train", 12), ("val", 4)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                top, left = generator.integers(0, 300), generator.integers(0, 500)
                Image.fromarray(photo[top : top + 120, left : left + 120]).save(folder / f"{i}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def digit_images():
    """scikit-learn's digits: uint8 images (1797, 8, 8) and their labels."""
    bunch = load_digits()
    return np.round(bunch.images * 255 / 16).astype(np.uint8), bunch.target
