"""Building the native kernels with the user's C++ compiler, once for each source, compiler, set of flags and CPU."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

import mindspore as ms

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
HOW = "install g++ (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or name a compiler in CXX"


class UnavailableError(Exception):
    """The kernels cannot be built or used here; the message says why and what helps."""


def build():
    """Return the path of the library, compiled for this CPU unless the cache has it. Raises `UnavailableError`."""
    compiler = find_compiler()
    onednn = next((Path(ms.__file__).parent / "lib").glob("libdnnl.so.*"), None)
    if onednn is None:
        raise UnavailableError("this MindSpore has no oneDNN, whose matrix product the kernels use")
    command = [*compiler, *FLAGS, str(SOURCE), str(onednn)]
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version, " ".join(command).encode(), cpu()])).hexdigest()
    library = cache_folder() / f"kernels-{key[:16]}.so"
    if not library.exists():
        compile_library(command, library)
    return library


def load(library, threads):
    """Load the library into this process and give it its number of threads. Raises `UnavailableError`."""
    try:
        ctypes.CDLL(str(library)).set_threads(threads)
    except OSError as error:
        raise UnavailableError(f"{library} cannot be loaded: {error}") from None


def compile_library(command, library):
    """Compile to a temporary file and move it into place, so that processes which start together do not clash."""
    print(f"compiling the native kernels with {command[0]}, once ...", flush=True)
    began = time.perf_counter()
    part = library.with_suffix(f".{os.getpid()}")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True, check=False)
        if done.returncode:
            problem = next(
                (line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}"
            )
            raise UnavailableError(f"{command[0]} failed on them: {problem.strip()}; {HOW}")
        part.replace(library)
    except OSError as error:
        raise UnavailableError(f"{library.parent} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    print(f"compiled in {time.perf_counter() - began:.0f} s: {library}", flush=True)


def find_compiler():
    """Return the command of CXX, or else of the first C++ compiler there is."""
    named = os.environ.get("CXX", "").split()
    for command in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    raise UnavailableError(f"there is no C++ compiler{f' {named[0]}' if named else ''}: {HOW}")


def cache_folder():
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketspore"


def cpu():
    """Return what tells this CPU's instruction set from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))).encode()
