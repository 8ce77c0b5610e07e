"""A process with one runtime and nothing else, which loads files and runs them on request."""

import atexit
import contextlib
import json
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, Any, TypeVar, Union, cast

import numpy as np

from src.errors import UserError

WORKER = Path(__file__).with_name("worker.py")
TIMEOUT = 600.0  # seconds that a request may take; the slowest, converting a network of 25 MB, takes seconds

Process = TypeVar("Process", bound="RuntimeProcess")


class RuntimeProcess:
    """A process with one runtime. `run` takes and returns arrays after `load` has loaded a model.

    `python` is the path of a Python that has the runtime. The process imports no other runtime, so its peak memory is
    the runtime's own, and MindSpore and MindSpore Lite do not meet.
    """

    def __init__(self, name: str, package: str, python: str) -> None:
        self.name = name
        # Runtimes write much to stderr; of that, only the last line before a crash is reported.
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, str(WORKER), package], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )
        # With PIPE, Popen opens both.
        self.stdin, self.stdout = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        atexit.register(self.close)
        try:
            self.version: str = self.ask("start")[0]["version"]
        except BaseException:
            self.close()
            raise

    def __enter__(self: Process) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.stdin, self.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):  # of a request that the process did not take
                stream.close()
        atexit.unregister(self.close)

    def load(self, path: Union[str, Path], threads: int = 0) -> float:
        """Load a file and return the time in seconds; with `threads` 0, the runtime chooses their number."""
        return self.ask("load", path=str(path), threads=threads)[0]["seconds"]

    def run(self, array: np.ndarray) -> np.ndarray:
        """Return the output for one input."""
        return self.time(array, 1)[0]

    def time(self, array: np.ndarray, repeats: int) -> tuple[np.ndarray, list[float]]:
        """Return the output for one input, and the time of each of `repeats` runs in milliseconds."""
        request = {"shape": array.shape, "dtype": array.dtype.name, "repeats": repeats}
        header, output = self.ask("run", np.ascontiguousarray(array).tobytes(), **request)
        return np.frombuffer(output, header["dtype"]).reshape(header["shape"]), header["milliseconds"]

    def peak_memory(self) -> int:
        """Return the process's peak memory so far, in bytes."""
        return self.ask("memory")[0]["peak"]

    def ask(self, action: str, data: bytes = b"", **request: Any) -> tuple[dict[str, Any], bytes]:
        """Send a request with its `data`; return the answer and the bytes that belong to it.

        An error or a crash of the process is a `UserError`, and so is an answer that takes longer than TIMEOUT.
        """
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        # Ending the process also ends a reading or writing that waits for it.
        timer = threading.Timer(TIMEOUT, stop)
        timer.daemon = True
        timer.start()
        try:
            self.stdin.write(json.dumps({"action": action, **request}).encode() + b"\n" + data)
            self.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; the missing answer reports it
        try:
            line = self.stdout.readline()
            answer = json.loads(line) if line.endswith(b"\n") else None
            output = self.stdout.read(answer.get("bytes", 0)) if answer else b""
        finally:
            timer.cancel()
        if late.is_set():
            raise UserError(
                f"{self.name}: no answer to the request {action!r} within the timeout (expected at most {TIMEOUT:g} "
                "seconds); the process was ended; try again with less other load on this machine"
            )
        if answer is None or len(output) < answer.get("bytes", 0):
            raise UserError(f"{self.name} crashed: {self.last_log_line()}")
        if "error" in answer:
            raise UserError(f"{self.name}: {answer['error']}")
        return answer, output

    def last_log_line(self) -> str:
        """Return the last line that the process wrote to stderr, or its exit code if it wrote nothing."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.wait()}"
