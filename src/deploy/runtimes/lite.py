"""Find MindSpore Lite on this machine, and use it in a separate process."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, Optional, Union, cast

import numpy as np

from src.errors import UserError

WORKER = Path(__file__).with_name("lite_worker.py")
HOW_TO_GET = "run tools/setup_lite.sh (needs a Python 3.7), or name a Python that has mindspore_lite with --lite-python"


def environment() -> Path:
    """Return the folder of the virtual environment that tools/setup_lite.sh creates."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pocketspore" / "lite"


def find_lite(named: Optional[str] = None) -> Optional[str]:
    """Return the path of a Python that has MindSpore Lite, or None if no such Python is found.

    The `named` Python is used if given; without MindSpore Lite it is a `UserError`. Otherwise this process's Python is
    tried, and then the Python that tools/setup_lite.sh installs.
    """
    if named is not None:
        if not has_lite(named):
            raise UserError(f"--lite-python {named}: is not a Python that has mindspore_lite")
        return named
    candidates = (sys.executable, str(environment() / "bin" / "python"))
    return next((python for python in candidates if has_lite(python)), None)


def has_lite(python: str) -> bool:
    """Return whether the Python at the path `python` can import MindSpore Lite."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('mindspore_lite') is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def need_lite(named: Optional[str] = None) -> str:
    """Return the path of a Python that has MindSpore Lite; without such a Python, raise a `UserError`."""
    python = find_lite(named)
    if python is None:
        raise UserError(f"MindSpore Lite was not found; {HOW_TO_GET}")
    return python


class Lite:
    """A process with MindSpore Lite. `run` takes and returns arrays after `load` has loaded a model."""

    name = "MindSpore Lite"

    def __init__(self, python: str) -> None:
        # Lite writes much to stderr; of that, only the last line before a crash is reported.
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )
        # With PIPE, Popen opens both.
        self.stdin, self.stdout = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        atexit.register(self.close)
        self.version = self.answer()["version"]

    def __enter__(self) -> "Lite":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.stdin, self.stdout, self.log):
            stream.close()
        atexit.unregister(self.close)

    def load(self, path: Union[str, Path], threads: int = 0) -> float:
        """Load a .ms or .mindir file and return the time in seconds; with `threads` 0, Lite chooses their number."""
        return self.ask("load", path=str(path), threads=threads)["seconds"]

    def run(self, array: np.ndarray) -> np.ndarray:
        """Return the output for one input."""
        return self.time(array, 1)[0]

    def time(self, array: np.ndarray, repeats: int) -> tuple[np.ndarray, list[float]]:
        """Return the output for one input, and the time of each of `repeats` runs in milliseconds."""
        request = {"shape": array.shape, "dtype": array.dtype.name, "repeats": repeats}
        header = self.ask("run", np.ascontiguousarray(array).tobytes(), **request)
        count = int(np.prod(header["shape"])) * np.dtype(header["dtype"]).itemsize
        output = np.frombuffer(self.stdout.read(count), header["dtype"]).reshape(header["shape"])
        return output, header["milliseconds"]

    def convert(
        self,
        source: Union[str, Path],
        target: Union[str, Path],
        weight_fp16: bool = False,
        config: Optional[dict[str, dict[str, str]]] = None,
    ) -> None:
        """Convert a MindIR file to `target`, whose name ends with .ms; `config` is {section: {key: value}}."""
        stem = str(Path(target).with_suffix(""))
        self.ask("convert", source=str(source), target=stem, weight_fp16=weight_fp16, config=config or {})

    def peak_memory(self) -> int:
        """Return the process's peak memory so far, in bytes."""
        return self.ask("memory")["peak"]

    def ask(self, action: str, data: bytes = b"", **request: Any) -> dict[str, Any]:
        """Send a request with its `data`, and return the answer."""
        try:
            self.stdin.write(json.dumps({"action": action, **request}).encode() + b"\n" + data)
            self.stdin.flush()
        except BrokenPipeError:
            pass  # the process has crashed; `answer` reports it
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next answer; an error or a crash of the process is a `UserError`."""
        line = self.stdout.readline()
        if not line:
            raise UserError(f"MindSpore Lite crashed: {self.last_log_line()}")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"MindSpore Lite: {answer['error']}")
        return answer

    def last_log_line(self) -> str:
        """Return the last line that the process wrote to stderr, or its exit code if it wrote nothing."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.wait()}"
