"""Compile the native kernels with the user's C++ compiler: once per source, compiler, set of flags and CPU.

The environment variables CXX and CXXFLAGS name another compiler and further flags, as for make.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from src.files import cache_folder, make_parent, naming, publish

SOURCE = Path(__file__).with_name("operators.cpp")  # includes the headers beside it
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
CHECKSUM_BYTES = hashlib.sha256().digest_size
HOW = "install g++ (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or set CXX to a C++ compiler"


class UnavailableError(Exception):
    """The kernels cannot be built or used here. The message says why and what to do."""


def build() -> Path:
    """Return the path of the compiled library. Compile it first if the cache does not have it, or has damaged it.

    Raise `UnavailableError` if it cannot be compiled.
    """
    compiler = find_compiler()
    command = [*compiler, *FLAGS, *os.environ.get("CXXFLAGS", "").split(), str(SOURCE)]
    version = start([*compiler, "--version"]).stdout
    sources = [path.read_text("utf-8") for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
    parts = [*sources, version, " ".join(command), cpu()]
    key = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    try:
        library = cache_folder() / f"kernels-{key[:16]}.so"
        if not is_whole(library):
            compile_library(command, library)
    except RuntimeError as error:  # the user has no home folder
        raise UnavailableError(f"they cannot be kept: {error}; set XDG_CACHE_HOME to a folder") from None
    except OSError as error:
        place = error.filename or cache_folder()
        raise UnavailableError(
            f"{place}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    return library


def is_whole(library: Path) -> bool:
    """Return whether the library exists and ends with its checksum; loading a truncated library ends the process."""
    try:
        content = library.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return content[-CHECKSUM_BYTES:] == hashlib.sha256(content[:-CHECKSUM_BYTES]).digest()


def load(library: Path, threads: int) -> None:
    """Load the library into this process and set its number of threads.

    Raise `UnavailableError` if it cannot be loaded.
    """
    try:
        ctypes.CDLL(str(library)).set_threads(threads)
    except OSError as error:
        raise UnavailableError(f"{library} cannot be loaded: {error}") from None


def compile_library(command: list[str], library: Path) -> None:
    """Compile to a temporary file and move it into place, so that processes that start together do not conflict.

    The checksum is at the end of the library, where the system does not look. So both are always of the same version.
    """
    reason = "the kept library is damaged" if library.exists() else "first run only"
    print(f"compiling the native kernels with {command[0]} ({reason}) ...", flush=True)
    began = time.perf_counter()
    make_parent(library)
    prefix = f".{library.name}-"
    # A random name, because the numbers of processes are not unique where containers share the cache folder.
    with naming(library, prefix), tempfile.TemporaryDirectory(dir=library.parent, prefix=prefix) as folder:
        partial = Path(folder) / library.name
        done = start([*command, "-o", str(partial)])
        if done.returncode or not partial.exists():
            lines = (line for line in done.stderr.splitlines() if "error" in line)
            problem = next(lines, f"exit code {done.returncode}" if done.returncode else "it wrote no library")
            raise UnavailableError(f"{command[0]} failed to compile them: {problem.strip()}; {HOW}")
        content = partial.read_bytes()
        partial.write_bytes(content + hashlib.sha256(content).digest())
        publish({partial: library})
    print(f"compiled in {time.perf_counter() - began:.0f} s: {library}", flush=True)


def start(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a compiler, with messages in English; raise `UnavailableError` if it cannot be started."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, capture_output=True, check=False, env=environment, errors="replace", stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise UnavailableError(f"{command[0]} cannot be started: {error.strerror}; {HOW}") from None


def find_compiler() -> list[str]:
    """Return the command in CXX or, without CXX, the first installed C++ compiler."""
    named = os.environ.get("CXX", "").split()
    for command in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    raise UnavailableError(f"no C++ compiler is installed{f' as CXX={named[0]}' if named else ''}; {HOW}")


def is_fast() -> bool:
    """Return whether the kernels are faster than MindSpore's operators on this CPU.

    They keep 12 to 24 vectors of 8 or 16 floats in registers, and need multiplication and addition in one instruction.
    Processors with x86-64 have both from AVX2 with FMA on. With SSE only, the compiler keeps the vectors in memory, and
    the kernels are about as fast as MindSpore's operators. All 64-bit ARM processors have 32 registers and the
    instruction.
    """
    if platform.machine() != "x86_64":
        return True
    flags = cpu().split()
    return "avx2" in flags and "fma" in flags


def cpu() -> str:
    """Return a description of this CPU's model and instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU")))
