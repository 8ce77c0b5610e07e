"""The doctor's facts about machines that this machine is not: folders stand in for drivers, CANN and CUDA."""

import csv
import importlib.metadata
import re

import pytest

from src.doctor.machine import (
    MISSING,
    OK,
    REQUIREMENTS,
    WRONG,
    accelerator,
    compared,
    launcher,
    matches,
    memory,
    packages,
    version_of,
)
from tests.conftest import ROOT

TOOLKIT = "package_name=Ascend-cann-toolkit\nversion=8.2.RC1\ninnerversion=V100R001C22\narch=x86_64\n"
NVIDIA = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023\nGCC version: 12\n"


INFO = "x86_64-linux/ascend_toolkit_install.info"
TOOLKIT_FILE = f"usr/local/Ascend/ascend-toolkit/latest/{INFO}"
SYSTEM = "usr/lib/x86_64-linux-gnu"
TWO_CUDAS = {"mine/libcudart.so.11.1.74": "", "usr/local/cuda/lib64/libcudart.so.12.2.1": ""}


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("need", "files", "environment", "version"),
    [
        ("CANN", {TOOLKIT_FILE: TOOLKIT}, {}, "8.2.RC1"),
        ("CANN", {f"mine/{INFO}": TOOLKIT}, {"ASCEND_TOOLKIT_HOME": "mine"}, "8.2.RC1"),
        ("CANN", {}, {"ASCEND_TOOLKIT_HOME": "mine"}, None),
        ("Ascend driver", {"usr/local/Ascend/driver/version.info": "Version=25.2.0\nascendhal=7\n"}, {}, "25.2.0"),
        ("NVIDIA driver", {"proc/driver/nvidia/version": NVIDIA}, {}, "535.54.03"),
        ("NVIDIA driver", {}, {}, None),
        ("CUDA", {"usr/local/cuda/lib64/libcudart.so.11.6.55": ""}, {}, "11.6.55"),
        ("CUDA", TWO_CUDAS, {"LD_LIBRARY_PATH": "mine"}, "11.1.74"),
        ("cuDNN", {f"{SYSTEM}/libcudnn.so.8": "", f"{SYSTEM}/libcudnn.so.8.5.0": ""}, {}, "8.5.0"),
        ("cuDNN", {f"{SYSTEM}/libcudnn_ops.so.8.5.0": ""}, {}, None),
    ],
)
def test_versions_are_read_from_the_files_of_the_software(tmp_path, need, files, environment, version):
    write(tmp_path, files)
    assert version_of(need, tmp_path, {key: str(tmp_path / value) for key, value in environment.items()}) == version


@pytest.mark.parametrize(
    ("need", "found", "mindspore", "state", "part"),
    [
        ("CANN", "8.2.RC1", "2.7.0", OK, "wants 8.2.RC1"),
        ("CANN", "8.1.RC1", "2.7.0", WRONG, "install CANN 8.2.RC1"),
        ("CANN", "8.2.RC1.alpha003", "2.7.0", WRONG, "install CANN 8.2.RC1"),
        ("CANN", "8.2.RC1", "2.7.1", WRONG, "install CANN 8.3.RC1"),
        ("CANN", None, "2.7.0", MISSING, "not found"),
        ("CANN", "8.2.RC1", "2.10.0", OK, "no row for MindSpore 2.10.0"),
        ("CUDA", "11.6.55", "2.7.0", OK, "wants 11.6 or 11.1"),
        ("CUDA", "11.1.74", "2.7.0", OK, ""),
        ("CUDA", "12.2.140", "2.7.0", WRONG, "install CUDA 11.6"),
        ("cuDNN", "8.5.0", "2.7.0", OK, ""),
        ("cuDNN", "9.1.0", "2.7.0", WRONG, "install cuDNN 8"),
        ("Ascend driver", "25.3.RC1", "2.7.0", OK, "at least 25.2.0"),
        ("Ascend driver", "24.1.0", "2.7.0", WRONG, "install Ascend driver 25.2.0"),
        ("NVIDIA driver", "535.54.03", "2.7.0", OK, ""),
        ("NVIDIA driver", "470.82.01", "2.7.0", WRONG, "install NVIDIA driver 510.39.01"),
    ],
)
def test_a_version_is_compared_with_what_mindspore_wants(need, found, mindspore, state, part):
    fact = compared(need, found, mindspore)
    assert (fact.name, fact.state) == (need, state)
    assert part in f"{fact.found}; {fact.advice}"
    assert fact.state == OK or fact.advice


def test_versions_that_are_no_versions_match_only_themselves():
    assert matches("8.2.T11.B070", "8.2.T11.B070", "exact")
    assert not matches("8.2.T11.B070", "8.2", "at least")


def test_accelerators_of_a_machine_with_and_without_them(tmp_path):
    plugins = tmp_path / "plugins"
    write(tmp_path, {"plugins/libmindspore_ascend.so.2": "", "root/dev/davinci0": "", "root/dev/davinci_manager": ""})
    facts = {fact.name: fact for fact in accelerator("Ascend", plugins, "2.7.0", tmp_path / "root")}
    assert (facts["Ascend devices"].state, facts["Ascend devices"].found) == (OK, "1")
    assert facts["MindSpore for Ascend"].found == "libmindspore_ascend.so.2"
    # This test's MindSpore has no Ascend, so a device file alone is a problem.
    assert facts["MindSpore sees Ascend"].state == WRONG
    assert facts["CANN"].state == MISSING
    assert "not needed" not in facts["CANN"].advice
    facts = {fact.name: fact for fact in accelerator("GPU", plugins, "2.7.0", tmp_path / "root")}
    assert {fact.state for fact in facts.values()} == {MISSING}
    assert all("GPU" in fact.advice for fact in facts.values())
    assert "MindSpore sees GPU" not in facts


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["numpy>=1"], []),
        (["numpy>=99 # why"], [("numpy", WRONG)]),
        (["no-such-package-anywhere==1"], [("no-such-package-anywhere", MISSING)]),
        (['no-such-package-anywhere==1; python_version < "3"', "", "# text"], []),
        (["mindspore>=2"], [("mindspore", OK)]),
    ],
)
def test_packages_are_compared_with_requirements(lines, expected):
    *named, others = packages(lines)
    assert [(fact.name, fact.state) for fact in named] == expected
    assert others.found.startswith(f"{sum(line == 'numpy>=1' for line in lines)} ")


def test_the_packages_of_these_tests_are_ok():
    facts = {fact.name: fact for fact in packages(REQUIREMENTS.read_text().splitlines())}
    assert facts["onnxruntime"].found.startswith(importlib.metadata.version("onnxruntime"))


@pytest.mark.parametrize(
    ("files", "found", "state"),
    [
        ({}, "8.2 GB free of 16.4 GB", OK),
        ({"sys/fs/cgroup/memory.max": "max\n"}, "8.2 GB free of 16.4 GB", OK),
        (
            {"sys/fs/cgroup/memory.max": "4000000000\n", "sys/fs/cgroup/memory.current": "3000000000\n"},
            "1.0 GB free of 4.0 GB",
            WRONG,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000000\n",
            },
            "4.0 GB free of 5.0 GB",
            OK,
        ),
    ],
)
def test_memory_of_the_machine_or_its_container(tmp_path, files, found, state):
    write(tmp_path, {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\nHugePages_Total: 0\n", **files})
    fact = memory(tmp_path)
    assert (fact.found, fact.state) == (found, state)


def test_msrun_must_start_this_python(tmp_path):
    python = tmp_path / "bin" / "python"
    assert launcher("", str(python)).state == MISSING
    write(tmp_path, {"bin/python": "", "bin/msrun": "", "other/python": ""})
    for path in (python, tmp_path / "other" / "python"):
        path.chmod(0o755)
    assert launcher(f"{tmp_path}/bin:{tmp_path}/other", str(python)).state == OK
    assert launcher(f"{tmp_path}/other:{tmp_path}/bin", str(python)).state == WRONG


def test_the_page_has_the_table_of_versions():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    table = {tuple(re.split(r" *\| *", line)[1:5]) for line in page.splitlines() if line.startswith("| 2.")}
    with open(ROOT / "src" / "doctor" / "versions.csv", newline="", encoding="utf-8") as file:
        rows = [tuple(list(row.values())[:4]) for row in csv.DictReader(file)]
    assert rows
    assert set(rows) == table
