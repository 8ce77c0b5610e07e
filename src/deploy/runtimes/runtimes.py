"""The runtimes that execute an artefact, behind one method: `run(array) -> array`."""

import mindspore as ms
from mindspore import nn

from src.deploy.runtimes.lite import Lite, need_lite
from src.errors import UserError


class MindSporeRuntime:
    """MindSpore itself, for MindIR."""

    name, package = "MindSpore", "mindspore"
    version = ms.__version__

    def __init__(self, path, threads=0):
        if threads:
            ms.runtime.dispatch_threads_num(threads)
            ms.set_context(runtime_num_threads=threads)
        self.network = nn.GraphCell(ms.load(str(path)))

    def run(self, array):
        return self.network(ms.Tensor(array)).asnumpy()

    def close(self):
        self.network = None


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    name, package = "ONNX Runtime", "onnxruntime"

    def __init__(self, path, threads=0):
        import onnxruntime  # two seconds that other formats need not wait

        self.version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class of their own
            raise UserError(f"{path}: ONNX Runtime cannot load it: {error}") from None

    def run(self, array):
        return self.session.run(None, {self.session.get_inputs()[0].name: array})[0]

    def close(self):
        self.session = None


def lite_runtime(path, python, threads=0):
    """Return a `Lite` with the model loaded."""
    lite = Lite(python)
    lite.load(path, threads)
    return lite


def open_runtime(path, lite_python=None):
    """Return the runtime that an artefact is made for, by its ending."""
    if str(path).endswith(".onnx"):
        return OnnxRuntime(path)
    if str(path).endswith(".ms"):
        return lite_runtime(path, need_lite(lite_python))
    return MindSporeRuntime(path)
