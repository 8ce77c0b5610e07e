"""MindSpore Lite, found on this machine and spoken to in a process of its own."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from src.errors import UserError

WORKER = Path(__file__).with_name("lite_worker.py")
HOW_TO_GET = "tools/setup_lite.sh sets it up where there is a Python 3.7, or name one that has it with --lite-python"


def environment():
    """Return the folder of the virtual environment that tools/setup_lite.sh makes."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pocketspore" / "lite"


def find_lite(named=None):
    """Return the Python that has MindSpore Lite: the `named` one, this one, or setup_lite.sh's; None if there is none.

    A named one without it is a `UserError`.
    """
    if named is not None:
        if not has_lite(named):
            raise UserError(f"--lite-python {named}: is no Python that has mindspore_lite")
        return named
    own = environment() / "bin" / "python"
    return next((str(python) for python in (sys.executable, own) if has_lite(python)), None)


def has_lite(python):
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('mindspore_lite') is None)"
    try:
        return subprocess.run([python, "-c", question], capture_output=True).returncode == 0
    except OSError:
        return False


def need_lite(named=None):
    """Return the Python that has MindSpore Lite; that there is none is a `UserError` that says how to get one."""
    python = find_lite(named)
    if python is None:
        raise UserError(f"MindSpore Lite was not found: {HOW_TO_GET}")
    return python


class Lite:
    """A process with MindSpore Lite. `run` takes and returns arrays once a model is loaded."""

    name = "MindSpore Lite"

    def __init__(self, python):
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 Lite's chat, for what it says before it crashes
        self.process = subprocess.Popen(
            [python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )
        atexit.register(self.close)
        self.version = self.answer()["version"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            stream.close()
        atexit.unregister(self.close)

    def load(self, path, threads=0):
        """Load a .ms or .mindir file; return how long it took, seconds."""
        return self.ask("load", path=str(path), threads=threads)["seconds"]

    def run(self, array):
        """Return the output for one input."""
        return self.time(array, 1)[0]

    def time(self, array, repeats):
        """Return the output for one input, and the milliseconds of each of `repeats` runs."""
        request = {"shape": array.shape, "dtype": array.dtype.name, "repeats": repeats}
        header = self.ask("run", np.ascontiguousarray(array).tobytes(), **request)
        count = int(np.prod(header["shape"])) * np.dtype(header["dtype"]).itemsize
        output = np.frombuffer(self.process.stdout.read(count), header["dtype"]).reshape(header["shape"])
        return output, header["milliseconds"]

    def convert(self, source, target, weight_fp16=False, config=None):
        """Convert a MindIR file to `target`, which ends with .ms; `config` is {section: {key: value}}."""
        stem = str(Path(target).with_suffix(""))
        self.ask("convert", source=str(source), target=stem, weight_fp16=weight_fp16, config=config or {})

    def peak_memory(self):
        """Return the process's peak memory so far, bytes."""
        return self.ask("memory")["peak"]

    def ask(self, action, data=b"", **request):
        try:
            self.process.stdin.write(json.dumps({"action": action, **request}).encode() + b"\n" + data)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"MindSpore Lite crashed: {self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"MindSpore Lite: {answer['error']}")
        return answer

    def last_words(self):
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.wait()}"
