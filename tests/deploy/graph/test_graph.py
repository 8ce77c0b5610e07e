"""Read, rewrite and write graphs, and compare the outputs of the written files with MindSpore's Cells."""

import importlib.util
import sys

import mindspore as ms
import numpy as np
import onnxruntime
import pytest
from mindspore import nn, ops

from src.deploy.graph.int8 import fill_channels
from src.deploy.graph.mindir import read_mindir, read_proto, write_mindir
from src.deploy.graph.ncnn_format import optimize_for_ncnn, write_ncnn
from src.deploy.graph.onnx_format import write_onnx
from src.deploy.graph.passes import halve_weights, optimize, pool_means, separate_padding
from src.deploy.runtimes.process import RuntimeProcess
from src.errors import UserError
from src.models.ghostnet import GhostModule
from src.models.layers import ConvNormAct, InvertedResidual, pad_same
from src.models.shufflenet_v1 import ShuffleUnit as UnitV1
from src.models.shufflenet_v2 import ShuffleUnit as UnitV2

# Operators that the passes must replace, because device runtimes are slow at them or lack them.
SLOW = {"AvgPool3D", "BatchNorm", "MaxPool3DWithArgmax", "ReduceMean", "Transpose"}


class Normalize(nn.Cell):
    """The normalisation of pixels at the start of a network."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.scale = (ms.Tensor(np.float32(value).reshape(1, -1, 1, 1)) for value in (mean, 1 / std))

    def construct(self, x):
        return (x - self.mean) * self.scale


def same_shufflenet_v1():
    """A unit whose average pooling pads below and right, and does not count the padding."""
    unit = UnitV1(12, 24, 2, 3, 1)
    unit.pool = nn.AvgPool2d(3, 2, pad_mode="same")
    return [unit]


def same_mobilenet_v3(kernel_size):
    """A block whose depthwise convolution pads more below and right."""
    block = InvertedResidual(12, 24, 16, kernel_size, 2, nn.HSwish, 8)
    pad_same(block.layers[1])
    return [block]


BLOCKS = {
    "shufflenet_v1": lambda: [UnitV1(12, 24, 2, 3, 1), UnitV1(24, 24, 1, 3, 3)],
    "shufflenet_v2": lambda: [UnitV2(12, 24, 2, False), UnitV2(24, 24, 1, False)],
    "shufflenet_v2_equal_split": lambda: [UnitV2(12, 24, 2, True), UnitV2(24, 24, 1, True), UnitV2(24, 24, 2, True)],
    "stem": lambda: [Normalize(np.arange(12) - 3.0, np.arange(12) + 0.5), ConvNormAct(12, 4, 3, 2)],
    "gray_stem": lambda: [Normalize(np.float32([0.5]), np.float32([0.2])), ConvNormAct(12, 4, 5, 1)],
    "ghostnet": lambda: [GhostModule(12, 15)],
    "mobilenet_v2": lambda: [InvertedResidual(12, 24, 12, 3, 1, nn.ReLU6)],
    "mobilenet_v3": lambda: [InvertedResidual(12, 24, 12, 5, 1, nn.HSwish, 8)],
    "max_pool": lambda: [nn.ReLU(), nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)],
    "same_shufflenet_v1": same_shufflenet_v1,
    "same_mobilenet_v3_3x3": lambda: same_mobilenet_v3(3),
    "same_mobilenet_v3_5x5": lambda: same_mobilenet_v3(5),
    "same_pool": lambda: [nn.MaxPool2d(3, 2, pad_mode="same"), nn.Conv2d(12, 4, 1, pad_mode="valid", has_bias=True)],
}


# Blocks with a depthwise convolution between two dense convolutions, whose channels are no multiple of 16.
FILLED = {
    *("shufflenet_v2", "shufflenet_v2_equal_split", "mobilenet_v2", "mobilenet_v3"),
    *("same_mobilenet_v3_3x3", "same_mobilenet_v3_5x5"),
}


@pytest.fixture(scope="module", params=list(BLOCKS))
def block(request, tmp_path_factory):
    """Export one block of a network with MindSpore: (path of the MindIR file, an input, the Cell's output)."""
    generator = np.random.default_rng(7)
    network = nn.SequentialCell(BLOCKS[request.param]())
    for parameter in network.get_parameters():  # random statistics, too: zeros and ones would hide errors
        values = generator.uniform(0.5, 1.5, parameter.shape)
        signs = 1 if "variance" in parameter.name else generator.choice((-1, 1), parameter.shape)
        parameter.set_data(ms.Tensor(np.float32(values * signs)))
    network.set_train(False)
    x = generator.normal(size=(2, 12, 8, 8)).astype(np.float32)
    path = tmp_path_factory.mktemp(request.param) / "plain.mindir"
    ms.export(network, ms.Tensor(x), file_name=str(path), file_format="MINDIR")
    return path, x, network(ms.Tensor(x)).asnumpy()


def assert_close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_version_1_computes_the_same_in_mindspore(block, tmp_path):
    plain, x, expected = block
    graph = read_mindir(plain)
    optimize(graph)
    separate_padding(graph)
    write_mindir(graph, tmp_path / "net.mindir")
    assert read_proto(tmp_path / "net.mindir").mind_ir_version == 1
    assert_close(nn.GraphCell(ms.load(str(tmp_path / "net.mindir")))(ms.Tensor(x)).asnumpy(), expected)
    again = read_mindir(tmp_path / "net.mindir")
    assert [(node.op, node.attributes) for node in again.nodes] == [(node.op, node.attributes) for node in graph.nodes]


@pytest.mark.parametrize("optimized", [True, False, "filled", "dynamic"])
def test_onnx_computes_the_same(block, tmp_path, optimized):
    plain, x, expected = block
    graph = read_mindir(plain)
    is_dynamic = optimized == "dynamic"
    if optimized:
        optimize(graph, is_dynamic)
    if optimized == "filled":
        before = sum(array.size for array in graph.constants.values())
        fill_channels(graph, 16)
        name = plain.parent.name.rstrip("0")
        assert (sum(array.size for array in graph.constants.values()) > before) == (name in FILLED)
    elif {"MaxPool3DWithArgmax", "AvgPool3D"} & {node.op for node in graph.nodes}:
        with pytest.raises(UserError, match="operator .+Pool3D.* is not supported"):
            write_onnx(graph, tmp_path / "net.onnx")
        return
    write_onnx(graph, tmp_path / "net.onnx", dynamic_batch=is_dynamic)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert_close(session.run(None, {session.get_inputs()[0].name: x})[0], expected)
    if is_dynamic:
        more = np.concatenate([x, x, x[:1]])
        found = session.run(None, {session.get_inputs()[0].name: more})[0]
        assert_close(found, np.concatenate([expected, expected, expected[:1]]))


@pytest.fixture(scope="module")
def ncnn():
    """A process with ncnn."""
    if importlib.util.find_spec("ncnn") is None:
        pytest.skip("ncnn is not installed: run pip install ncnn")
    with RuntimeProcess("ncnn", "ncnn", sys.executable) as process:
        yield process


def test_ncnn_computes_the_same(block, ncnn, tmp_path):
    plain, x, expected = block
    graph = read_mindir(plain)
    optimize_for_ncnn(graph)
    for half, tolerance in ((False, 2e-6), (True, 3e-3)):
        write_ncnn(graph, tmp_path / "net.param", half)
        ncnn.load(tmp_path / "net.param")
        # ncnn knows no batches.
        assert_close(np.concatenate([ncnn.run(image) for image in np.split(x, len(x))]), expected, tolerance)


def test_ncnn_gets_its_own_layers(block, tmp_path):
    """Each blob has one layer that takes it, and channel shuffles and activations need no layers of their own."""
    graph = read_mindir(block[0])
    optimize_for_ncnn(graph)
    write_ncnn(graph, tmp_path / "net.param")
    magic, counts, *lines = (tmp_path / "net.param").read_text().splitlines()
    layers = [line.split() for line in lines]
    assert magic == "7767517"
    assert counts.split() == [str(len(layers)), str(sum(int(layer[3]) for layer in layers))]
    taken = [name for layer in layers for name in layer[4 : 4 + int(layer[2])]]
    assert len(set(taken)) == len(taken)
    kinds = [layer[0] for layer in layers]
    assert not {"Reshape", "Permute", "BatchNorm"} & set(kinds)


def test_passes_replace_all_slow_operators(block):
    graph = read_mindir(block[0])
    optimize(graph)
    pool_means(graph)
    assert not {node.op for node in graph.nodes} & SLOW
    assert {len(value.shape) for node in graph.nodes for value in node.outputs} == {4}
    assert {graph.constants[node.inputs[1]].size for node in graph.nodes if node.op == "Sub"} <= {1}


def test_float16_weights_take_half_the_size_and_give_close_outputs(tmp_path):
    network = ConvNormAct(64, 256, 3).set_train(False)
    x = np.random.default_rng(0).normal(size=(1, 64, 8, 8)).astype(np.float32)
    ms.export(network, ms.Tensor(x), file_name=str(tmp_path / "plain.mindir"), file_format="MINDIR")
    graph = read_mindir(tmp_path / "plain.mindir")
    optimize(graph)
    write_mindir(graph, tmp_path / "whole.mindir")
    halve_weights(graph)
    write_mindir(graph, tmp_path / "half.mindir")
    write_onnx(graph, tmp_path / "half.onnx")
    sizes = [(tmp_path / f"{name}.mindir").stat().st_size for name in ("half", "whole")]
    assert sizes[0] / sizes[1] == pytest.approx(0.5, abs=0.02)
    half = nn.GraphCell(ms.load(str(tmp_path / "half.mindir")))(ms.Tensor(x)).asnumpy()
    assert_close(half, network(ms.Tensor(x)).asnumpy(), 1e-3)
    session = onnxruntime.InferenceSession(str(tmp_path / "half.onnx"))
    assert_close(session.run(None, {session.get_inputs()[0].name: x})[0], half)


def test_damaged_mindir_is_an_error(tmp_path):
    damaged = tmp_path / "damaged.mindir"
    damaged.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="is truncated, damaged, or not a MindIR file"):
        read_mindir(damaged)


def test_unsupported_operator_is_named(tmp_path):
    class Erf(nn.Cell):
        def construct(self, x):
            return ops.erf(x)

    path = tmp_path / "erf.mindir"
    ms.export(Erf(), ms.Tensor(np.zeros(3, np.float32)), file_name=str(path), file_format="MINDIR")
    with pytest.raises(UserError, match="--format onnx: operator Erf is not supported"):
        write_onnx(read_mindir(path), tmp_path / "erf.onnx")
    with pytest.raises(UserError, match="--format ncnn: operator Erf is not supported"):
        write_ncnn(read_mindir(path), tmp_path / "erf.param")


def test_operators_that_compute_in_place_or_with_numbers(tmp_path):
    class InPlace(nn.Cell):
        def construct(self, x):
            y = ops.relu(x)
            y += x
            return y * 3.0 / 7.0

    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    path = tmp_path / "plain.mindir"
    ms.export(InPlace(), ms.Tensor(x), file_name=str(path), file_format="MINDIR")
    write_onnx(read_mindir(path), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert_close(session.run(None, {session.get_inputs()[0].name: x})[0], (np.maximum(x, 0) + x) * 3 / 7)
