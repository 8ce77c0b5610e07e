import importlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import src  # noqa: F401 - must come before MindSpore, so that JPEGs are decoded as in the scripts

# isort: split

import mindspore as ms
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from src.errors import run
from tests.shallow import make_shallow

ROOT = Path(__file__).resolve().parents[1]
# The modules that the scripts import only when a run starts.
HEAVY = [
    *("src.training.loop", "src.training.network", "src.deploy.export", "src.evaluation.output", "src.report.page"),
    *("src.cost.figures", "src.cost.guidelines", "src.cost.latency", "src.weights.pretrained"),
]
# Fixtures that many tests share and that take long; a test needs at most one of them.
COSTLY = {"quickstart", "two_ranks", "project", "block"}
# Overrides for the quickstart: smaller images and three epochs. It reaches about 90 % top-1 in about 20 seconds.
SMALL = [
    *("data.image_size=16", "augment.padding=1", "train.epochs=3", "train.label_smoothing=0.0"),
    *("optimizer.lr=0.02", "schedule.warmup_epochs=0.5"),
]


def pytest_configure(config):
    """Pin each worker of the tests to its own core, because idle threads of MindSpore use CPU time."""
    if hasattr(config, "workerinput") and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(config.workerinput["workerid"].removeprefix("gw")) % len(cores)]})


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Send all tests that need one of COSTLY to one worker, so that it is made once. Slow files come first."""
    for item in items:
        for name in COSTLY & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(name))
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def command():
    """Run one of the project's scripts in a new process; `cwd` is its working folder."""

    def run_command(name, *arguments, cwd):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GLOG")}
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)

    return run_command


@pytest.fixture(scope="session", autouse=True)
def default_hangup():
    """Let SIGHUP act in the tests and their processes, also if pytest runs under nohup, which ignores it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def default_mode():
    """Reset the execution mode, which another test may have changed."""
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture
def shallow(monkeypatch):
    """Make the networks shallow, for a test that compiles them and needs no depth."""
    make_shallow(set_attribute=monkeypatch.setattr)


@pytest.fixture(scope="session")
def fresh_processes():
    """Return a context whose processes are forked after the scripts were imported, so that a script starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.conftest", "train", "eval", "export", *HEAVY])
    forkserver.ensure_running()  # now, or its processes would have the environment that a test sets for itself
    return context


@pytest.fixture(scope="session")
def script(fresh_processes, tmp_path_factory):
    """Run a script as `command` does, but in a process where MindSpore is already imported.

    The networks that `shallow` names are shallow in the script.
    """

    def run_script(name, *arguments, cwd, shallow=()):
        streams = [tmp_path_factory.mktemp("streams") / stream for stream in ("stdout", "stderr")]
        arguments = [name, *map(str, arguments)]
        process = fresh_processes.Process(target=run_here, args=(arguments, cwd, shallow, *streams))
        process.start()
        process.join()
        return subprocess.CompletedProcess(arguments, process.exitcode, *(stream.read_text() for stream in streams))

    return run_script


def run_here(arguments, cwd, shallow, *streams):
    """Run a script in this process, with the working folder `cwd`; two files receive its stdout and stderr."""
    os.chdir(cwd)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as the activated environment has it
    make_shallow(shallow)
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = arguments
    run(importlib.import_module(arguments[0].removesuffix(".py").replace("/", ".")).main)


@pytest.fixture
def mistake(script):
    """Run a script that must end with exit code 2 and one line of error; return the error."""

    def run_and_fail(name, *arguments, cwd):
        done = script(name, *arguments, cwd=cwd)
        assert done.returncode == 2
        assert re.fullmatch(r"error: .+\n", done.stderr)
        return done.stderr

    return run_and_fail


@pytest.fixture(scope="session")
def quickstart(command, tmp_path_factory):
    """A short run on digits: (working folder, run folder, finished process)."""
    cwd = tmp_path_factory.mktemp("quickstart")
    config = ROOT / "configs" / "quickstart.yaml"
    done = command("train.py", "--config", config, "run.dir=run", *SMALL, cwd=cwd)
    return cwd, cwd / "run", done


@pytest.fixture
def photos(tmp_path):
    """An image folder with two classes: 12 training and 4 test JPEGs per class, cut from two photos of scikit-learn."""
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
