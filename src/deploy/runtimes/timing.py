"""Measure how long exported files take on their runtimes: each in a separate process, all of them in turn."""

import multiprocessing
import resource
import time
from collections.abc import Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Optional, Protocol, Union

import numpy as np

from src.deploy.runtimes.lite import Lite
from src.deploy.runtimes.runtimes import MindSporeRuntime, OnnxRuntime
from src.errors import UserError

RUNS_PER_TURN = 5  # the first run of a turn is not counted, because it meets cold caches
RUNTIMES = {runtime.name: runtime for runtime in (MindSporeRuntime, OnnxRuntime)}


class TimedRuntime(Protocol):
    """What Runner and Lite have in common."""

    name: str
    version: str

    def load(self, path: Union[str, Path], threads: int) -> float:
        """Load a file and return the time in seconds; with `threads` 0, the runtime chooses their number."""

    def time(self, array: np.ndarray, repeats: int) -> tuple[np.ndarray, list[float]]:
        """Return the output for one input, and the time of each of `repeats` runs in milliseconds."""

    def peak_memory(self) -> int:
        """Return the process's peak memory so far, in bytes."""

    def close(self) -> None:
        """End the process."""


class Runner:
    """MindSpore or ONNX Runtime with one file, in a separate process; `name` is the runtime's name."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, worker_pipe = context.Pipe()
        self.process = context.Process(target=work, args=(worker_pipe, name), daemon=True)
        self.process.start()
        worker_pipe.close()
        self.name = name
        self.version: str = self.ask(None)

    def load(self, path: Union[str, Path], threads: int) -> float:
        """Load a file and return the time in seconds; with `threads` 0, the runtime chooses their number."""
        return self.ask(("load", str(path), threads))

    def time(self, array: np.ndarray, repeats: int) -> tuple[np.ndarray, list[float]]:
        """Return the output for one input, and the time of each of `repeats` runs in milliseconds."""
        return self.ask(("time", array, repeats))

    def peak_memory(self) -> int:
        """Return the process's peak memory so far, in bytes."""
        return self.ask(("peak_memory",))

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join()

    def ask(self, request: Optional[tuple[Any, ...]]) -> Any:
        """Send a request and return the answer; None sends nothing, because the process first sends its version."""
        if request is not None:
            self.pipe.send(request)
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise UserError(f"{self.name} crashed") from None
        if isinstance(answer, UserError):
            raise answer
        return answer


def work(pipe: Connection, name: str) -> None:
    """Answer the requests of one `Runner` until the pipe is closed; this is its process."""
    kind = RUNTIMES[name]
    runtime: Any = None
    try:
        pipe.send(version(kind.package))
        while True:
            action, *arguments = pipe.recv()
            began = time.perf_counter()
            if action == "load":
                runtime = kind(*arguments)
                pipe.send(time.perf_counter() - began)
            elif action == "time":
                array, repeats = arguments
                times = []
                for _ in range(repeats):
                    began = time.perf_counter()
                    output = runtime.run(array)
                    times.append((time.perf_counter() - began) * 1000)
                pipe.send((output, times))
            else:
                pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except EOFError:
        pass
    except UserError as error:
        pipe.send(error)


def runners_for(path: Union[str, Path], lite_python: Optional[str]) -> list[TimedRuntime]:
    """Return a runner for each runtime that the file at `path` runs on; no runner has loaded it yet."""
    extension = Path(path).suffix
    runners: list[TimedRuntime] = []
    if extension == ".mindir":
        runners.append(Runner(MindSporeRuntime.name))
    if extension == ".onnx":
        runners.append(Runner(OnnxRuntime.name))
    if extension in (".ms", ".mindir") and lite_python is not None:
        runners.append(Lite(lite_python))
    return runners


def measure(
    jobs: Sequence[tuple[Union[str, Path], TimedRuntime, np.ndarray]], rounds: int, threads: int
) -> list[dict[str, Any]]:
    """Return the measurements of each job.

    A measurement has the keys path, runtime, version, load_ms, median_ms, low_ms and high_ms (quartiles), best_ms (of
    each round), peak_memory and size (both in bytes).

    `jobs` are (path, runner, input array). With `threads` 0, the runtime chooses their number. In each of the `rounds`,
    every job has one turn of a few runs. So a disturbance by other programs affects all jobs alike.
    """
    rows: list[dict[str, Any]] = []
    times: list[list[list[float]]] = [[] for _ in jobs]  # milliseconds, by job, round and run
    for path, runner, array in jobs:
        load_ms = runner.load(path, threads) * 1000
        size = Path(path).stat().st_size
        row = {"path": str(path), "runtime": runner.name, "version": runner.version, "load_ms": load_ms, "size": size}
        rows.append(row)
        runner.time(array, RUNS_PER_TURN)  # not counted: the first runs may still load or compile
    for _ in range(rounds):
        for job_times, (_, runner, array) in zip(times, jobs):
            job_times.append(runner.time(array, RUNS_PER_TURN)[1][1:])
    for row, job_times, (_, runner, _) in zip(rows, times, jobs):
        row["low_ms"], row["median_ms"], row["high_ms"] = np.percentile(job_times, (25, 50, 75)).tolist()
        row["best_ms"] = np.min(job_times, axis=1).tolist()
        row["peak_memory"] = runner.peak_memory()
    return rows
