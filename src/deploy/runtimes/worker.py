"""Run one runtime in a process that imports no other runtime: python worker.py PACKAGE

The process reads requests from stdin and writes answers to stdout. Each is a line of JSON; if it describes an array,
the array's bytes follow. `process.py` is the other end. MindSpore Lite 2.0.0 needs Python 3.7, so this file
keeps to it.
"""

from __future__ import annotations  # Python 3.7 cannot evaluate dict[str, Any]

import json
import os
import sys
import time
from typing import Any, BinaryIO

import numpy as np


def main(package: str) -> None:
    """Answer requests until stdin is closed."""
    # Runtimes print to stdout. Their text is sent to stderr, so that only answers are on the original stdout.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    session: Any = None
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        action = request.pop("action")
        try:
            if action == "start":
                session = SESSIONS[package]()
                answer(answers, {"version": session.version})
            elif action == "load":
                began = time.perf_counter()
                session.load(**request)
                answer(answers, {"seconds": time.perf_counter() - began})
            elif action == "run":
                answer(answers, *run(session, read_array(request), request["repeats"]))
            elif action == "memory":
                answer(answers, {"peak": peak_memory()})
            else:
                getattr(session, action)(**request)
                answer(answers, {})
        except Exception as error:  # process.py reports it, whatever it is
            answer(answers, {"error": " ".join(str(error).split()) or type(error).__name__})


class LiteSession:
    """MindSpore Lite: one loaded model, and the converter."""

    def __init__(self) -> None:
        import mindspore_lite

        self.lite, self.version = mindspore_lite, mindspore_lite.__version__
        self.model: Any = None

    def load(self, path: str, threads: int) -> None:
        """Load a .ms or .mindir file; with `threads` 0, Lite chooses the number of threads."""
        context = self.lite.Context()
        context.target = ["cpu"]
        if threads:
            context.cpu.thread_num = threads
        kind = self.lite.ModelType.MINDIR_LITE if path.endswith(".ms") else self.lite.ModelType.MINDIR
        self.model = self.lite.Model()
        self.model.build_from_file(path, kind, context)

    def prepare(self, array: np.ndarray) -> None:
        """Fill the model's input."""
        self.inputs = self.model.get_inputs()
        self.inputs[0].set_data_from_numpy(array)

    def predict(self) -> Any:
        """Run the model on its input."""
        return self.model.predict(self.inputs)

    def array_of(self, outputs: Any) -> np.ndarray:
        """Return the array of `predict`'s result."""
        return outputs[0].get_data_to_numpy()

    def convert(self, source: str, target: str, weight_fp16: bool, config: dict[str, dict[str, str]]) -> None:
        """Convert a MindIR file to .ms; `target` has no extension, and `config` is {section: {key: value}}."""
        converter = self.lite.Converter()
        converter.save_type = self.lite.ModelType.MINDIR_LITE
        converter.input_format = self.lite.Format.NCHW  # the default, NHWC, gives wrong outputs without an error
        converter.weight_fp16 = weight_fp16
        for section, settings in config.items():
            converter.set_config_info(section, settings)
        converter.convert(fmk_type=self.lite.FmkType.MINDIR, model_file=source, output_file=target)


class MindSporeSession:
    """MindSpore, for MindIR files."""

    def __init__(self) -> None:
        import mindspore

        self.mindspore, self.version = mindspore, mindspore.__version__

    def load(self, path: str, threads: int) -> None:
        """Load a .mindir file; with `threads` 0, MindSpore chooses the number of threads."""
        if threads:
            self.mindspore.runtime.dispatch_threads_num(threads)
            self.mindspore.set_context(runtime_num_threads=threads)
        self.network = self.mindspore.nn.GraphCell(self.mindspore.load(path))

    def prepare(self, array: np.ndarray) -> None:
        """Fill the network's input."""
        self.input = self.mindspore.Tensor(array)

    def predict(self) -> np.ndarray:
        """Run the network on its input."""
        return self.network(self.input).asnumpy()  # asnumpy waits for the result

    def array_of(self, output: np.ndarray) -> np.ndarray:
        """Return the array of `predict`'s result."""
        return output


class OnnxSession:
    """ONNX Runtime on the CPU."""

    def __init__(self) -> None:
        import onnxruntime

        self.onnxruntime, self.version = onnxruntime, onnxruntime.__version__

    def load(self, path: str, threads: int) -> None:
        """Load an .onnx file; with `threads` 0, ONNX Runtime chooses the number of threads."""
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = self.onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def prepare(self, array: np.ndarray) -> None:
        """Fill the session's input."""
        self.feed = {self.session.get_inputs()[0].name: array}

    def predict(self) -> np.ndarray:
        """Run the session on its input."""
        return self.session.run(None, self.feed)[0]

    def array_of(self, output: np.ndarray) -> np.ndarray:
        """Return the array of `predict`'s result."""
        return output


class NcnnSession:
    """ncnn on the CPU, with float32 arithmetic: its default may be float16 or bfloat16, which are faster on ARM."""

    def __init__(self) -> None:
        import ncnn

        self.ncnn, self.version = ncnn, ncnn.__version__

    def load(self, path: str, threads: int) -> None:
        """Load a .param file and the .bin file beside it; with `threads` 0, ncnn chooses the number of threads."""
        self.net = self.ncnn.Net()
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(self.net.opt, name, False)
        if threads:
            self.net.opt.num_threads = threads
        weights = os.path.splitext(path)[0] + ".bin"
        for load, file in ((self.net.load_param, path), (self.net.load_model, weights)):
            if load(file) != 0:
                raise RuntimeError(f"{file}: ncnn cannot load it")

    def prepare(self, array: np.ndarray) -> None:
        """Fill the input: pixels uint8 (1, H, W, C) or a tensor float32 (1, C, H, W)."""
        mat = self.ncnn.Mat
        if array.dtype == np.uint8:
            _, height, width, channels = array.shape
            kind = mat.PixelType.PIXEL_RGB if channels == 3 else mat.PixelType.PIXEL_GRAY
            self.input = mat.from_pixels(np.ascontiguousarray(array[0]), kind, width, height)
        else:
            self.input = mat(np.ascontiguousarray(array[0])).clone()

    def predict(self) -> Any:
        """Run the network on its input."""
        extractor = self.net.create_extractor()
        extractor.input(self.net.input_names()[0], self.input)
        code, output = extractor.extract(self.net.output_names()[0])
        if code != 0:
            raise RuntimeError(f"ncnn cannot run the network (error {code})")
        return output

    def array_of(self, output: Any) -> np.ndarray:
        """Return the array of `predict`'s result, with an axis for the batch."""
        return np.array(output)[None]


SESSIONS = {
    "mindspore_lite": LiteSession,
    "mindspore": MindSporeSession,
    "onnxruntime": OnnxSession,
    "ncnn": NcnnSession,
}


def run(session: Any, array: np.ndarray, repeats: int) -> tuple[dict[str, Any], np.ndarray]:
    """Return ({dtype, shape, milliseconds of each run}, output)."""
    times = []
    for _ in range(repeats):
        session.prepare(array)
        began = time.perf_counter()
        result = session.predict()
        times.append((time.perf_counter() - began) * 1000)
    output = session.array_of(result)
    return {"dtype": output.dtype.name, "shape": list(output.shape), "milliseconds": times}, output


def peak_memory() -> int:
    """Return this process's peak memory in bytes, the VmHWM of Linux.

    The ru_maxrss of getrusage is not used: it begins with the memory of the process that started this process.
    """
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def read_array(request: dict[str, Any]) -> np.ndarray:
    """Return the array that follows `request` on stdin."""
    count = int(np.prod(request["shape"])) * np.dtype(request["dtype"]).itemsize
    return np.frombuffer(sys.stdin.buffer.read(count), request["dtype"]).reshape(request["shape"])


def answer(stream: BinaryIO, header: dict[str, Any], array: np.ndarray | None = None) -> None:
    """Write an answer, and the bytes of its array."""
    data = b"" if array is None else np.ascontiguousarray(array).tobytes()
    stream.write(json.dumps({**header, "bytes": len(data)}).encode() + b"\n" + data)
    stream.flush()


if __name__ == "__main__":
    main(sys.argv[1])
