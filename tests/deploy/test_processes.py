"""The processes of the runtimes: what they import, their memory, and what happens when they hang or crash."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from src.deploy.quantize import write_lite_calibration
from src.deploy.runtimes.lite import Lite
from src.deploy.runtimes.process import RuntimeProcess
from src.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def python(tmp_path):
    """Return a function that makes a stand-in for a Python, which runs a line of shell."""

    def make(line):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
        return str(path)

    return make


def test_a_runtime_that_does_not_answer_is_ended_at_the_timeout(python, monkeypatch):
    monkeypatch.setattr("src.deploy.runtimes.process.TIMEOUT", 0.2)
    message = "MindSpore Lite: no answer to the request 'start' within the timeout .expected at most 0.2 seconds."
    with pytest.raises(UserError, match=message):
        Lite(python("cat > /dev/null"))


def test_half_an_answer_is_a_crash(python):
    with pytest.raises(UserError, match="MindSpore Lite crashed: bad luck"):
        Lite(python("""printf '{"version"'; echo bad luck >&2"""))


def test_the_peak_memory_is_that_of_a_process_with_one_runtime():
    weight = np.ones(300 * 2**20, np.uint8)  # of this process, which must not count
    with RuntimeProcess("ONNX Runtime", "onnxruntime", sys.executable) as runtime:
        folder = Path(f"/proc/{runtime.process.pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        peak = runtime.peak_memory()
        maps = (folder / "maps").read_text()
    assert "onnxruntime" in maps
    assert "mindspore" not in maps
    assert int(status["VmHWM"].split()[0]) * 1024 <= peak < weight.nbytes


def test_the_calibration_of_lite_can_be_moved_to_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("src.deploy.quantize.write_mindir", lambda graph, path: path.write_bytes(b""))
    graph = SimpleNamespace(input=SimpleNamespace(name="image"))
    folder = tmp_path / "net.ms.int8"
    settings = write_lite_calibration(graph, [np.zeros((1, 4, 4, 3), np.uint8)] * 3, folder)
    written = (folder / "int8.cfg").read_text()
    assert str(tmp_path) not in written
    assert "calibrate_path=image:images\n" in written
    assert settings["data_preprocess_param"]["calibrate_path"] == f"image:{folder / 'images'}"
    assert len(list((folder / "images").iterdir())) == 3


def test_lite_is_not_installed_on_a_system_without_a_wheel(tmp_path):
    """pip would install the wheel for ARM there, because it is tagged for any system."""
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin arm64\n")
    (tmp_path / "uname").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([ROOT / "tools" / "setup_lite.sh"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    problem = "has no wheel for this system (found Darwin arm64, expected Linux on x86_64 or aarch64)"
    assert done.stderr == f"error: MindSpore Lite 2.0.0 {problem}\n"
    assert not (tmp_path / "cache").exists()
