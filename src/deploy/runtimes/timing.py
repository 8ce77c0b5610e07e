"""Measure how long exported files take on their runtimes: each in a separate process, all of them in turn."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from src.deploy.description import size_of
from src.deploy.runtimes.lite import Lite
from src.deploy.runtimes.process import RuntimeProcess

RUNS_PER_TURN = 5  # the first run of a turn is not counted, because it meets cold caches


def runners_for(path: Union[str, Path], lite_python: Optional[str]) -> list[RuntimeProcess]:
    """Return a process for each runtime that the file at `path` runs on; no process has loaded it yet."""
    extension = Path(path).suffix
    runners: list[RuntimeProcess] = []
    if extension in (".mindir", ".onnx", ".param"):
        runners.append(process_for(extension, None))
    if extension in (".ms", ".mindir") and lite_python is not None:
        runners.append(Lite(lite_python))
    return runners


def process_for(extension: str, lite_python: Optional[str]) -> RuntimeProcess:
    """Return a process with the runtime of an extension: MindSpore Lite if `lite_python` is given."""
    if lite_python is not None:
        return Lite(lite_python)
    if extension == ".onnx":
        return RuntimeProcess("ONNX Runtime", "onnxruntime", sys.executable)
    if extension == ".param":
        return RuntimeProcess("ncnn", "ncnn", sys.executable)
    return RuntimeProcess("MindSpore", "mindspore", sys.executable)


def median_ms(
    jobs: Sequence[tuple[Path, np.ndarray]], runner: RuntimeProcess, rounds: int, threads: int
) -> list[float]:
    """Return the median time in milliseconds of each job, an exported file and its input.

    One process loads the files in turn, in each of the `rounds`, and runs each file RUNS_PER_TURN times. The first run
    of a turn is not counted.
    """
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds):
        for job_times, (path, array) in zip(times, jobs):
            runner.load(path, threads)
            job_times += runner.time(array, 1 + RUNS_PER_TURN)[1][1:]
    return [float(np.median(job_times)) for job_times in times]


def measure(
    jobs: Sequence[tuple[Union[str, Path], RuntimeProcess, np.ndarray]], rounds: int, threads: int
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
        row = {"path": str(path), "runtime": runner.name, "version": runner.version, "load_ms": load_ms}
        row["size"] = size_of(path)
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
