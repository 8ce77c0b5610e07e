"""The runtimes that execute exported files, all with the same method: `run(array) -> array`."""

import sys
from pathlib import Path
from typing import Optional, Protocol, Union

import mindspore as ms
import numpy as np
from mindspore import nn

from src.deploy.runtimes.lite import Lite, need_lite
from src.deploy.runtimes.process import RuntimeProcess
from src.deploy.web.page import read_network
from src.errors import UserError


class Runtime(Protocol):
    """What MindSporeRuntime, OnnxRuntime and Lite have in common."""

    name: str
    version: str

    def run(self, array: np.ndarray) -> np.ndarray:
        """Return the output for one input."""

    def close(self) -> None:
        """Release the model."""


class MindSporeRuntime:
    """MindSpore, for MindIR files."""

    name, version = "MindSpore", ms.__version__

    def __init__(self, path: Union[str, Path]) -> None:
        self.network = nn.GraphCell(ms.load(str(path)))

    def run(self, array: np.ndarray) -> np.ndarray:
        """Return the output for one input."""
        return self.network(ms.Tensor(array)).asnumpy()

    def close(self) -> None:
        """Release the model."""
        self.network = None


class OnnxRuntime:
    """ONNX Runtime on the CPU, for ONNX files and for the networks of pages."""

    name = "ONNX Runtime"

    def __init__(self, path: Union[str, Path]) -> None:
        import onnxruntime  # takes two seconds, and other formats do not need it

        self.version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            model = read_network(path) if str(path).endswith(".html") else str(path)
            self.session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base class
            raise UserError(f"{path}: ONNX Runtime cannot load it: {error}") from None

    def run(self, array: np.ndarray) -> np.ndarray:
        """Return the output for one input."""
        return self.session.run(None, {self.session.get_inputs()[0].name: array})[0]

    def close(self) -> None:
        """Release the model."""
        self.session = None


def lite_runtime(path: Union[str, Path], python: str) -> Lite:
    """Return a `Lite` that has loaded the model at `path`."""
    lite = Lite(python)
    lite.load(path)
    return lite


def ncnn_runtime(path: Union[str, Path]) -> RuntimeProcess:
    """Return a process with ncnn that has loaded the .param file at `path` and its weights."""
    ncnn = RuntimeProcess("ncnn", "ncnn", sys.executable)
    ncnn.load(path)
    return ncnn


def open_runtime(path: Union[str, Path], lite_python: Optional[str] = None) -> Runtime:
    """Return the runtime for an exported file, chosen by the file extension."""
    if str(path).endswith((".onnx", ".html")):
        return OnnxRuntime(path)
    if str(path).endswith(".ms"):
        return lite_runtime(path, need_lite(lite_python))
    if str(path).endswith(".param"):
        return ncnn_runtime(path)
    return MindSporeRuntime(path)
