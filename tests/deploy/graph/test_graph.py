"""Reading, rewriting and writing graphs: what a file computes is compared with MindSpore's own Cells."""

import mindspore as ms
import numpy as np
import onnxruntime
import pytest
from mindspore import nn, ops

from src.deploy.graph.mindir import read_mindir, read_proto, write_mindir
from src.deploy.graph.onnx_format import write_onnx
from src.deploy.graph.passes import halve_weights, optimize, pool_means, separate_padding
from src.errors import UserError
from src.models.ghostnet import GhostModule
from src.models.layers import ConvNormAct, InvertedResidual
from src.models.shufflenet_v1 import ShuffleUnit as UnitV1
from src.models.shufflenet_v2 import ShuffleUnit as UnitV2

SLOW = {"AvgPool3D", "BatchNorm", "MaxPool3DWithArgmax", "ReduceMean", "Transpose"}


class Normalize(nn.Cell):
    """What a network does to pixels first."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.scale = (ms.Tensor(np.float32(value).reshape(1, -1, 1, 1)) for value in (mean, 1 / std))

    def construct(self, x):
        return (x - self.mean) * self.scale


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
    "same_pool": lambda: [nn.MaxPool2d(3, 2, pad_mode="same"), nn.Conv2d(12, 4, 1, pad_mode="valid", has_bias=True)],
}


@pytest.fixture(scope="module", params=list(BLOCKS))
def block(request, tmp_path_factory):
    """A block of a network: (MindSpore's export of it, an input, what the Cell puts out)."""
    generator = np.random.default_rng(7)
    network = nn.SequentialCell(BLOCKS[request.param]())
    for parameter in network.get_parameters():  # statistics and all, so that nothing is hidden by zeros and ones
        values = generator.uniform(0.5, 1.5, parameter.shape)
        signs = 1 if "variance" in parameter.name else generator.choice((-1, 1), parameter.shape)
        parameter.set_data(ms.Tensor(np.float32(values * signs)))
    network.set_train(False)
    x = generator.normal(size=(2, 12, 8, 8)).astype(np.float32)
    path = tmp_path_factory.mktemp(request.param) / "plain.mindir"
    ms.export(network, ms.Tensor(x), file_name=str(path), file_format="MINDIR")
    return path, x, network(ms.Tensor(x)).asnumpy()


def close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_version_1_computes_the_same_in_mindspore(block, tmp_path):
    plain, x, expected = block
    graph = read_mindir(plain)
    optimize(graph)
    separate_padding(graph)
    write_mindir(graph, tmp_path / "net.mindir")
    assert read_proto(tmp_path / "net.mindir").mind_ir_version == 1
    close(nn.GraphCell(ms.load(str(tmp_path / "net.mindir")))(ms.Tensor(x)).asnumpy(), expected)
    again = read_mindir(tmp_path / "net.mindir")
    assert [(node.op, node.attributes) for node in again.nodes] == [(node.op, node.attributes) for node in graph.nodes]


@pytest.mark.parametrize("optimized", [True, False])
def test_onnx_computes_the_same(block, tmp_path, optimized):
    plain, x, expected = block
    graph = read_mindir(plain)
    if optimized:
        optimize(graph)
    elif {"MaxPool3DWithArgmax", "AvgPool3D"} & {node.op for node in graph.nodes}:
        with pytest.raises(UserError, match="the operator .+Pool3D"):
            write_onnx(graph, tmp_path / "net.onnx")
        return
    write_onnx(graph, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    close(session.run(None, {session.get_inputs()[0].name: x})[0], expected)


def test_nothing_slow_is_left(block):
    graph = read_mindir(block[0])
    optimize(graph)
    pool_means(graph)
    assert not {node.op for node in graph.nodes} & SLOW
    assert {len(value.shape) for node in graph.nodes for value in node.outputs} == {4}
    assert {graph.constants[node.inputs[1]].size for node in graph.nodes if node.op == "Sub"} <= {1}


def test_float16_weights_are_half_the_size_and_near(tmp_path):
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
    close(half, network(ms.Tensor(x)).asnumpy(), 1e-3)
    session = onnxruntime.InferenceSession(str(tmp_path / "half.onnx"))
    close(session.run(None, {session.get_inputs()[0].name: x})[0], half)


def test_files_that_are_no_networks(tmp_path):
    damaged = tmp_path / "damaged.mindir"
    damaged.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="is cut short, damaged, or no MindIR file"):
        read_mindir(damaged)


def test_unknown_operators_are_named(tmp_path):
    class Erf(nn.Cell):
        def construct(self, x):
            return ops.erf(x)

    path = tmp_path / "erf.mindir"
    ms.export(Erf(), ms.Tensor(np.zeros(3, np.float32)), file_name=str(path), file_format="MINDIR")
    with pytest.raises(UserError, match="has the operator Erf"):
        write_onnx(read_mindir(path), tmp_path / "erf.onnx")


def test_operators_in_place_and_of_numbers(tmp_path):
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
    close(session.run(None, {session.get_inputs()[0].name: x})[0], (np.maximum(x, 0) + x) * 3 / 7)
