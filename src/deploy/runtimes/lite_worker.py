"""Run MindSpore Lite in a separate process, because it must not share a process with MindSpore.

The process reads requests from stdin and writes answers to stdout. Each is a line of JSON; if it describes an array,
the array's bytes follow. `lite.py` is the other end. MindSpore Lite 2.0.0 needs Python 3.7, so this file keeps to it.
"""

from __future__ import annotations  # Python 3.7 cannot evaluate dict[str, Any]

import json
import os
import sys
import time
from typing import Any, BinaryIO

import numpy as np


def main() -> None:
    """Answer requests until stdin is closed."""
    # Lite prints to stdout. Its text is sent to stderr, so that only answers are on the original stdout.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import mindspore_lite

    session = Session(mindspore_lite)
    answer(answers, {"version": mindspore_lite.__version__})
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        action = request.pop("action")
        try:
            if action == "run":
                output = session.run(read_array(request), request["repeats"])
                answer(answers, *output)
            else:
                answer(answers, getattr(session, action)(**request))
        except Exception as error:  # lite.py reports it, whatever it is
            answer(answers, {"error": " ".join(str(error).split())})


class Session:
    """One loaded model, and the converter. `lite` is the module mindspore_lite."""

    def __init__(self, lite: Any) -> None:
        self.lite = lite
        self.model: Any = None

    def load(self, path: str, threads: int) -> dict[str, Any]:
        """Load a .ms or .mindir file; return {seconds, shape and dtype of the input}.

        With `threads` 0, Lite chooses the number of threads.
        """
        lite = self.lite
        context = lite.Context()
        context.target = ["cpu"]
        if threads:
            context.cpu.thread_num = threads
        kind = lite.ModelType.MINDIR_LITE if path.endswith(".ms") else lite.ModelType.MINDIR
        self.model = lite.Model()
        began = time.perf_counter()
        self.model.build_from_file(path, kind, context)
        model_input = self.model.get_inputs()[0]
        return {
            "seconds": time.perf_counter() - began,
            "shape": list(model_input.shape),
            "dtype": model_input.dtype.name.lower(),
        }

    def run(self, array: np.ndarray, repeats: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return ({dtype, shape, milliseconds of each run}, output)."""
        inputs = self.model.get_inputs()
        times = []
        for _ in range(repeats):
            inputs[0].set_data_from_numpy(array)
            began = time.perf_counter()
            outputs = self.model.predict(inputs)
            times.append((time.perf_counter() - began) * 1000)
        output = outputs[0].get_data_to_numpy().copy()  # copied, because the next run overwrites it
        return {"dtype": output.dtype.name, "shape": list(output.shape), "milliseconds": times}, output

    def convert(self, source: str, target: str, weight_fp16: bool, config: dict[str, dict[str, str]]) -> dict[str, Any]:
        """Convert a MindIR file to .ms; `target` has no extension, and `config` is {section: {key: value}}."""
        lite = self.lite
        converter = lite.Converter()
        converter.save_type = lite.ModelType.MINDIR_LITE
        converter.input_format = lite.Format.NCHW  # the default, NHWC, gives wrong outputs without an error
        converter.weight_fp16 = weight_fp16
        for section, settings in config.items():
            converter.set_config_info(section, settings)
        converter.convert(fmk_type=lite.FmkType.MINDIR, model_file=source, output_file=target)
        return {}

    def memory(self) -> dict[str, Any]:
        """Return {peak: the process's peak memory in bytes}."""
        import resource

        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def read_array(request: dict[str, Any]) -> np.ndarray:
    """Return the array that follows `request` on stdin."""
    count = int(np.prod(request["shape"])) * np.dtype(request["dtype"]).itemsize
    return np.frombuffer(sys.stdin.buffer.read(count), request["dtype"]).reshape(request["shape"])


def answer(stream: BinaryIO, header: dict[str, Any], array: np.ndarray | None = None) -> None:
    """Write an answer, and the bytes of its array."""
    stream.write(json.dumps(header).encode() + b"\n")
    if array is not None:
        stream.write(np.ascontiguousarray(array).tobytes())
    stream.flush()


if __name__ == "__main__":
    main()
