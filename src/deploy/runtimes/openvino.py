"""OpenVINO, which also runs ONNX files: it verifies them where the package `openvino` is installed."""

import importlib.util
from pathlib import Path

import numpy as np

FULL_PRECISION, DEFAULT_PRECISION = "OpenVINO, f32", "OpenVINO, default precision"


class OpenVinoRuntime:
    """OpenVINO on the CPU, with float32 arithmetic or with the precision that it chooses for the processor.

    On processors with instructions for bfloat16, its default is bfloat16.
    """

    def __init__(self, path: Path, name: str) -> None:
        import openvino  # optional

        self.name, self.version = name, str(openvino.__version__).partition("-")[0]
        settings = {"INFERENCE_PRECISION_HINT": "f32"} if name == FULL_PRECISION else {}
        self.model = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(self, array: np.ndarray) -> np.ndarray:
        """Return the output for one input."""
        return self.model([array])[0]

    def close(self) -> None:
        """Release the model."""
        self.model = None


def openvino_runtimes(path: Path) -> list[OpenVinoRuntime]:
    """Return OpenVINO with both precisions for the ONNX file at `path`, or nothing if it is not installed."""
    if importlib.util.find_spec("openvino") is None:
        return []
    return [OpenVinoRuntime(path, name) for name in (FULL_PRECISION, DEFAULT_PRECISION)]
