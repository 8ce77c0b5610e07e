"""Compile the native kernels with the user's C++ compiler: once per source, compiler, set of flags and CPU."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

import mindspore as ms

from src.files import cache_folder

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
HOW = "install g++ (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or set CXX to a C++ compiler"


class UnavailableError(Exception):
    """The kernels cannot be built or used here. The message says why and what to do."""


def build() -> Path:
    """Return the path of the compiled library. Compile it first if the cache does not have it.

    Raise `UnavailableError` if it cannot be compiled.
    """
    compiler = find_compiler()
    onednn = next((Path(ms.__file__).parent / "lib").glob("libdnnl.so.*"), None)
    if onednn is None:
        raise UnavailableError(
            "MindSpore's oneDNN library, which the kernels use, is missing (expected lib/libdnnl.so.*)"
        )
    command = [*compiler, *FLAGS, str(SOURCE), str(onednn)]
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version, " ".join(command).encode(), cpu()])).hexdigest()
    library = cache_folder() / f"kernels-{key[:16]}.so"
    if not library.exists():
        compile_library(command, library)
    return library


def load(library: Path, threads: int) -> None:
    """Load the library into this process and set its number of threads.

    Raise `UnavailableError` if it cannot be loaded.
    """
    try:
        ctypes.CDLL(str(library)).set_threads(threads)
    except OSError as error:
        raise UnavailableError(f"{library} cannot be loaded: {error}") from None


def compile_library(command: list[str], library: Path) -> None:
    """Compile to a temporary file and move it into place, so that processes that start together do not conflict."""
    print(f"compiling the native kernels with {command[0]} (first run only) ...", flush=True)
    start = time.perf_counter()
    part = library.with_suffix(f".{os.getpid()}")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True, check=False)
        if done.returncode:
            problem = next(
                (line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}"
            )
            raise UnavailableError(f"{command[0]} failed to compile them: {problem.strip()}; {HOW}")
        part.replace(library)
    except OSError as error:
        raise UnavailableError(f"{library.parent} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    print(f"compiled in {time.perf_counter() - start:.0f} s: {library}", flush=True)


def find_compiler() -> list[str]:
    """Return the command in CXX or, without CXX, the first installed C++ compiler."""
    named = os.environ.get("CXX", "").split()
    for command in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    raise UnavailableError(f"no C++ compiler is installed{f' as CXX={named[0]}' if named else ''}; {HOW}")


def cpu() -> bytes:
    """Return a description of this CPU's model and instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))).encode()
