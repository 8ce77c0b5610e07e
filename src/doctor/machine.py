"""Facts about this machine: what is installed, what MindSpore wants, and what to do about the difference."""

import csv
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Optional

import mindspore as ms
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from src.deploy.runtimes.lite import HOW_TO_GET, Lite, find_lite
from src.errors import UserError
from src.kernels import build
from src.processors import usable
from src.runtime.device import TARGETS

OK, MISSING, WRONG = "ok", "missing", "wrong"
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
LEAST_MEMORY = 3e9  # bytes; tools/doctor.py itself takes 2 GB, and a run on small images takes 1 to 3 GB
# Each accelerator: its device files, MindSpore's library for it, and the software that it needs.
ACCELERATORS = {
    "Ascend": ("davinci[0-9]*", "libmindspore_ascend.so*", ("Ascend driver", "CANN")),
    "GPU": ("nvidia[0-9]*", "libmindspore_gpu.so*", ("NVIDIA driver", "CUDA", "cuDNN")),
}
LIBRARIES = {"CUDA": "libcudart.so", "cuDNN": "libcudnn.so"}
# A file that has the version of a software, below the root of the file system, and the text before the version.
FILES = {
    "Ascend driver": (("usr/local/Ascend/driver/version.info",), r"Version\s*=\s*"),
    "NVIDIA driver": (("proc/driver/nvidia/version",), r"Kernel Module(?: for \w+)?\s+"),
    "CANN": (
        (
            "usr/local/Ascend/ascend-toolkit/latest/*-linux/ascend_toolkit_install.info",
            "usr/local/Ascend/cann/*-linux/ascend_toolkit_install.info",
        ),
        r"^version\s*=\s*",
    ),
}


@dataclass(frozen=True)
class Fact:
    """A line of the doctor's list: `state` is OK, MISSING or WRONG, and `advice` says what to do."""

    name: str
    state: str
    found: str
    advice: str = ""


def facts() -> Iterator[Fact]:
    """Yield all facts about this machine, in the order of the list. It can compile the native kernels."""
    yield Fact("Python", OK, f"{platform.python_version()} on {platform.platform()}")  # src/__init__.py checks it
    yield from packages(REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    plugins = Path(ms.__file__).parent / "lib" / "plugin"
    for name in ACCELERATORS:
        yield from accelerator(name, plugins, ms.__version__)
    yield from compiler()
    yield processors(usable(), os.cpu_count())
    yield memory()
    yield lite()
    yield launcher(os.environ.get("PATH", ""), sys.executable)


def packages(lines: Iterable[str]) -> Iterator[Fact]:
    """Yield a `Fact` for MindSpore, for ONNX Runtime, and for all other packages together.

    `lines` are the lines of requirements.txt.
    """
    others = 0
    for line in lines:
        text = line.partition("#")[0].strip()
        if not text:
            continue
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        found = installed(wanted.name)
        good = found is not None and wanted.specifier.contains(found, prereleases=True)
        if good and wanted.name not in ("mindspore", "onnxruntime"):
            others += 1
            continue
        state = OK if good else MISSING if found is None else WRONG
        advice = "" if good else "run: pip install -r requirements.txt"
        yield Fact(wanted.name, state, f"{found or 'not installed'} (expected {wanted.specifier})", advice)
    yield Fact("other packages", OK, f"{others} are as requirements.txt asks")


def installed(package: str) -> Optional[str]:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def accelerator(name: str, plugins: Path, mindspore: str, root: Path = Path("/")) -> Iterator[Fact]:
    """Yield the facts of one of ACCELERATORS: its devices, MindSpore's library, its software, what MindSpore sees.

    `plugins` is the folder of MindSpore's libraries, `mindspore` is its version, `root` is the root of the files.
    """
    device_files, library, software = ACCELERATORS[name]
    devices = sorted((root / "dev").glob(device_files))
    found = sorted(path.name for path in plugins.glob(library))
    unneeded = "" if devices else f"; not needed without {name}"
    advice = f"only a machine with {name} needs it: install its driver (docs/scale.md)"
    yield Fact(f"{name} devices", OK if devices else MISSING, f"{len(devices)}", "" if devices else advice)
    wheel = "install MindSpore 2.7.0, the last wheel with a GPU back end" if name == "GPU" else "reinstall MindSpore"
    yield Fact(
        f"MindSpore for {name}",
        OK if found else MISSING,
        ", ".join(found) or f"no {library}",
        "" if found else wheel + unneeded,
    )
    for need in software:
        yield compared(need, version_of(need, root, os.environ), mindspore, unneeded)
    if devices:
        sees = ms.hal.is_available(TARGETS[name.lower()])
        advice = "source CANN's set_env.sh, or add CUDA's lib64 to LD_LIBRARY_PATH; then run the doctor again"
        yield Fact(f"MindSpore sees {name}", OK if sees else WRONG, "yes" if sees else "no", "" if sees else advice)


def wanted(need: str, mindspore: str) -> list[dict[str, str]]:
    """Return the rows of versions.csv about a software that this version of MindSpore needs."""
    with open(Path(__file__).with_name("versions.csv"), newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if (row["mindspore"], row["needs"]) == (mindspore, need)]


def compared(need: str, found: Optional[str], mindspore: str, unneeded: str = "") -> Fact:
    """Return the `Fact` about a software that MindSpore needs; `found` is its version here, or None."""
    rows = wanted(need, mindspore)
    if not rows:
        text = f"{found or 'not found'} (versions.csv has no row for MindSpore {mindspore})"
        return Fact(need, OK if found else MISSING, text, f"compare with https://www.mindspore.cn/install{unneeded}")
    versions = " or ".join(row["version"] for row in rows)
    good = found is not None and any(matches(found, row["version"], row["match"]) for row in rows)
    least = "at least " if rows[0]["match"] == "at least" else ""
    text = f"{found or 'not found'} (MindSpore {mindspore} wants {least}{versions})"
    advice = f"install {need} {rows[0]['version']} ({rows[0]['source']}){unneeded}"
    return Fact(need, OK if good else MISSING if found is None else WRONG, text, "" if good else advice)


def matches(found: str, expected: str, match: str) -> bool:
    """Return whether a version fits the `expected` version in the way that the column `match` of versions.csv says."""
    try:
        one, other = Version(found), Version(expected)
    except InvalidVersion:
        return found == expected
    if match == "at least":
        return one >= other
    parts = {"major": 1, "minor": 2}.get(match)
    return one == other if parts is None else one.release[:parts] == other.release[:parts]


def version_of(need: str, root: Path, environment: Mapping[str, str]) -> Optional[str]:
    """Return the version of a driver, CANN, CUDA or cuDNN on this machine, or None."""
    if need in LIBRARIES:
        return library_version(LIBRARIES[need], library_folders(root, environment))
    patterns, before = FILES[need]
    places = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    home = environment.get("ASCEND_TOOLKIT_HOME") if need == "CANN" else None
    if home:  # set_env.sh sets it, so it comes before the usual folder
        places = [*sorted(Path(home).glob("*-linux/ascend_toolkit_install.info")), *places]
    for place in places:
        found = re.search(before + r"(\S+)", place.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found:
            return found[1]
    return None


def library_folders(root: Path, environment: Mapping[str, str]) -> list[Path]:
    """Return the folders in which a CUDA library can be, the folders of LD_LIBRARY_PATH first."""
    named = [Path(folder) for folder in environment.get("LD_LIBRARY_PATH", "").split(":") if folder]
    usual = ("usr/local/cuda/lib64", "usr/local/cuda-*/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib64")
    return named + [path for pattern in usual for path in sorted(root.glob(pattern))]


def library_version(name: str, folders: Iterable[Path]) -> Optional[str]:
    """Return the version in the file name of a library, such as 11.6.55 of libcudart.so.11.6.55, or None."""
    for folder in folders:
        versions = [path.name.removeprefix(f"{name}.") for path in folder.glob(f"{name}.*.*")]
        if versions:
            return max(versions, key=len)
    return None


def compiler() -> Iterator[Fact]:
    """Yield the facts about the C++ compiler and the native kernels that it builds."""
    try:
        command = build.find_compiler()
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        yield Fact("C++ compiler", OK, done.stdout.partition("\n")[0] or command[0])
        build.build()
        yield Fact("native kernels", OK, "compiled for this processor")
    except build.UnavailableError as reason:
        yield Fact("native kernels", MISSING, f"{reason}".partition(";")[0], f"{build.HOW}; only a CPU needs them")


def processors(count: int, present: Optional[int]) -> Fact:
    """Return the `Fact` about the processors that this process may use, of all that are `present`."""
    advice = "a container's limit or the CPU affinity allows no more" if present and count < present else ""
    return Fact("processors", OK, f"{count} of {present or 'an unknown number'} may be used", advice)


def memory(root: Path = Path("/")) -> Fact:
    """Return the `Fact` about the free memory: of the machine, or of the container if it has less."""
    lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    sizes = {name.rstrip(":"): int(size) * 1024 for name, size, *_ in lines}
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        folder = root / "sys/fs/cgroup"
        if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()) != "max":
            total = min(total, int(text))
            free = min(free, int(text) - int((folder / used).read_text()))
    few = free < LEAST_MEMORY
    advice = f"a run needs {LEAST_MEMORY / 1e9:.0f} GB: end other programs, or raise the container's limit"
    text = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    return Fact("memory", WRONG if few else OK, text, advice if few else "")


def lite() -> Fact:
    """Return the `Fact` about MindSpore Lite."""
    python = find_lite()
    if python is None:
        return Fact("MindSpore Lite", MISSING, "not found", f"only .ms files need it: {HOW_TO_GET}")
    try:
        with Lite(python) as runtime:
            return Fact("MindSpore Lite", OK, runtime.version)
    except UserError as problem:
        return Fact("MindSpore Lite", WRONG, str(problem), "run tools/setup_lite.sh again")


def launcher(path: str, python: str) -> Fact:
    """Return the `Fact` about msrun. It runs the first `python` in `path`, which must be this `python`."""
    folder = Path(python).parent
    if not (folder / "msrun").is_file():
        return Fact("msrun", MISSING, f"not in {folder}", "run: pip install -r requirements.txt")
    first = shutil.which("python", path=path)
    if first is None or Path(first).parent != folder:
        advice = f"activate this environment: source {folder / 'activate'}"
        return Fact("msrun", WRONG, f"starts {first or 'no python'} (expected {folder / 'python'})", advice)
    return Fact("msrun", OK, f"starts {first}")
