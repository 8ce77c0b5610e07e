"""How long artefacts take on their runtimes: each in a process of its own, all of them in turn."""

import multiprocessing
import resource
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from src.deploy.runtimes.lite import Lite
from src.deploy.runtimes.runtimes import MindSporeRuntime, OnnxRuntime
from src.errors import UserError

TURN = 5  # runs, of which the first, on cold caches, does not count
IN_PROCESS = {runtime.name: runtime for runtime in (MindSporeRuntime, OnnxRuntime)}


class Runner:
    """MindSpore or ONNX Runtime with one file, in a process of its own; `Lite` has the same methods."""

    def __init__(self, name):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=work, args=(there, name), daemon=True)
        self.process.start()
        there.close()
        self.name = name
        self.version = self.ask(None)

    def load(self, path, threads):
        return self.ask(("load", str(path), threads))

    def time(self, array, repeats):
        return self.ask(("time", array, repeats))

    def peak_memory(self):
        return self.ask(("peak_memory",))

    def close(self):
        self.pipe.close()
        self.process.join()

    def ask(self, request):
        if request is not None:
            self.pipe.send(request)
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise UserError(f"{self.name} crashed") from None
        if isinstance(answer, UserError):
            raise answer
        return answer


def work(pipe, name):
    """Be one runner's process, until the pipe is closed."""
    kind, runtime = IN_PROCESS[name], None
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


def runners_for(path, lite_python):
    """Return a runner for each runtime that a file runs on, nothing loaded yet."""
    ending = Path(path).suffix
    found = []
    if ending == ".mindir":
        found.append(Runner(MindSporeRuntime.name))
    if ending == ".onnx":
        found.append(Runner(OnnxRuntime.name))
    if ending in (".ms", ".mindir") and lite_python is not None:
        found.append(Lite(lite_python))
    return found


def measure(jobs, rounds, threads):
    """Return a dict a job: path, runtime, version, load_ms, median_ms, low_ms and high_ms (quartiles), best_ms of each
    round, peak_memory and size in bytes.

    `jobs` are (path, runner, input array); `threads` 0 leaves their number to the runtime. The jobs take turns of some
    runs, one turn in each of the `rounds`, so that what else the machine does meets all of them.
    """
    rows, times = [], [[] for _ in jobs]
    for path, runner, array in jobs:
        load_ms = runner.load(path, threads) * 1000
        size = Path(path).stat().st_size
        row = {"path": str(path), "runtime": runner.name, "version": runner.version, "load_ms": load_ms, "size": size}
        rows.append(row)
        runner.time(array, TURN)  # what is loaded or compiled late
    for _ in range(rounds):
        for own, (_, runner, array) in zip(times, jobs):
            own.append(runner.time(array, TURN)[1][1:])
    for row, own, (_, runner, _) in zip(rows, times, jobs):
        row["low_ms"], row["median_ms"], row["high_ms"] = np.percentile(own, (25, 50, 75)).tolist()
        row["best_ms"] = np.min(own, axis=1).tolist()
        row["peak_memory"] = runner.peak_memory()
    return rows
