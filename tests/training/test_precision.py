"""Half precision, as far as a CPU can show it: it computes float16, and it checks the types of bfloat16.

The compiled networks are shallow, with every kind of layer. The test op by op trains a whole network.
"""

import itertools
import os

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops
from mindspore.amp import DynamicLossScaler

from src.config.load import make_config
from src.data.datasets import load_samples
from src.data.loading import train_loader
from src.errors import UserError
from src.models import NETWORKS, create_model
from src.runtime.parallel import replace_cells
from src.runtime.precision import Scaler, check_precision, multiplies, set_precision
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep
from src.weights.checkpoint import recorded_config
from tests.graphs import saved_graphs

BATCH, CLASSES, SIDE = 33, 13, 32  # no layer has 33 or 13 channels
STEPS = 20
# Learning rates at which the loss falls by a tenth to a half in these steps.
RATE = 0.001
RATES = {
    "ghostnet": 0.003,
    "mobilenet_v1": 0.02,
    "mobilenet_v3_large": 0.006,
    "mobilenet_v3_small": 0.02,
    "shufflenet_v1": 0.003,
}
SCALE = 128.0  # small enough for gradients without overflow
HALVES = {"float16": "Float16", "bfloat16": "BFloat16"}
# Operators that compute in float32 between casts, because MindSpore refuses their inputs in bfloat16; and reshapes.
IN_FLOAT32 = {"BatchNorm", "ReLU6", "AvgPool3D", "MaxPool3DWithArgmax", "Cast", "ExpandDims", "Squeeze", "Reshape"}
IN_FLOAT32 |= {"BatchNormGrad", "ReLU6Grad", "AvgPool3DGrad", "MaxPool3DGradWithArgmax"}


def step_of(name, precision, norms="auto", mode="graph", replace=None):
    """Return a training step of a network with its smallest width, whose weights depend on nothing else.

    A shift of 1 in the BatchNorms keeps most activations away from the kink of ReLU, where a rounding error switches a
    gradient on or off. So roundings do not grow, and the networks learn quickly. `replace` changes the layers.
    """
    config = make_config(
        {
            "model": {"name": name, "width": min(NETWORKS[name].variants), "norm_epsilon": 0.01},
            "data": {"name": "digits", "image_size": SIDE, "crop_fraction": 1.0, "workers": 1},
            "augment": {"crop": "none", "flip": 0.0},
            "train": {"batch_size": BATCH},
            "runtime": {"kernels": "stock", "precision": precision, "norm_precision": norms, "mode": mode},
        }
    )
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    ms.set_seed(0)
    np.random.seed(0)
    classifier = create_model(config.model, config.data, CLASSES).set_train(True)
    for parameter in classifier.get_parameters():
        if parameter.name.endswith(".beta"):
            parameter.set_data(ms.Tensor(np.ones(parameter.shape, np.float32)))
    if replace is not None:
        replace(classifier.backbone)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("src.runtime.precision.INITIAL_SCALE", SCALE)
        scaler = set_precision(classifier, config.runtime)
    return TrainStep(classifier, create_optimizer(config, classifier), config, scaler=scaler), classifier


def losses(step, count=STEPS, rate=RATE):
    """Return the losses of the first steps on the digits."""
    config = make_config(
        {
            "data": {"name": "digits", "image_size": SIDE, "crop_fraction": 1.0, "workers": 1},
            "augment": {"crop": "none", "flip": 0.0},
            "train": {"batch_size": BATCH},
        }
    )
    step.begin(np.full(count, rate, np.float32))
    batches = train_loader(config, load_samples(config.data, "train")).epoch(1)
    for images, labels in itertools.islice(batches, count):
        step(ms.Tensor(images), ms.Tensor(labels))
    return step.results()[:, 0]


def check_losses(found, expected):
    """The network learns in float32, and as much in other numbers: the last losses, which vary by batch, on average."""
    assert expected[-5:].mean() < 0.9 * expected[0]
    np.testing.assert_allclose(found[-5:].mean(), expected[-5:].mean(), rtol=0.01)


def check_types(nodes, half, in_float32):
    """Feature maps have the type `half`, except outputs of `in_float32`; statistics, logits and loss are float32."""
    maps = [(node.name, kind) for node in nodes for kind, shape in node.outputs if is_feature_map(shape)]
    assert {name for name, kind in maps if kind == half} >= {"Conv2D", "ReduceMean"}
    assert {name for name, kind in maps if kind == "Float32"} <= in_float32
    assert {kind for name, kind in maps if name in ("Conv2D", "Conv2DBackpropInput", "Add", "Concat", "Mul")} == {half}
    norms = [node for node in nodes if node.name == "BatchNorm"]
    assert {kind for node in norms for kind, _ in (*node.inputs[1:], *node.outputs[1:])} == {"Float32"}
    assert {kind for node in nodes for kind, shape in node.outputs if shape == (BATCH, CLASSES)} <= {"Float32", "Bool"}
    (rows,) = [node for node in nodes if node.name == "ScatterUpdate"]
    assert {kind for kind, _ in rows.inputs} == {"Float32", "Int32"}  # the losses and the hits that the host reads


def is_feature_map(shape):
    return len(shape) >= 4 and shape[0] == BATCH and shape[1] != 3  # the images have three channels


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", NETWORKS)
def test_float16_trains_as_float32_does(name, tmp_path):
    rate = RATES.get(name, RATE)
    expected = losses(step_of(name, "float32")[0], rate=rate)
    step, classifier = step_of(name, "float16")
    with saved_graphs(tmp_path) as nodes:
        found = losses(step, rate=rate)
    check_losses(found, expected)
    assert float(step.state["optimizer.loss_scale"].asnumpy()) == SCALE  # without an overflow
    assert {parameter.dtype for parameter in classifier.get_parameters()} == {ms.float32}
    check_types(nodes, "Float16", set())


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_has_types_that_mindspore_accepts(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MindSpore writes about the failure
    step, _ = step_of(name, "bfloat16")
    # A CPU has no kernels for bfloat16. MindSpore selects kernels after it has checked the types of all operators.
    with saved_graphs(tmp_path) as nodes, pytest.raises(TypeError, match="Kernel select failed"):
        losses(step, 1)
    check_types(nodes, "BFloat16", IN_FLOAT32)


class Rounded(nn.Cell):
    """A layer as bfloat16 computes it: sums in float32 of rounded weights, a rounded output, and rounded gradients."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.has_weights = layer, isinstance(layer, nn.Conv2d)

    def construct(self, x):
        y = self.layer.conv2d(x, rounded(self.layer.weight)) if self.has_weights else self.layer(x)
        return rounded(y)


def rounded(x):
    return ops.cast(ops.cast(x, ms.bfloat16), ms.float32)


@pytest.mark.slow
def test_rounding_to_bfloat16_trains_as_float32_does():
    """A CPU has no convolution of bfloat16, so float32 layers between casts imitate it."""
    layers = nn.Conv2d, nn.BatchNorm2d, nn.ReLU
    step, classifier = step_of(
        "mobilenet_v1", "float32", replace=lambda backbone: replace_cells(backbone, layers, Rounded)
    )
    assert sum(isinstance(cell, Rounded) for _, cell in classifier.cells_and_names()) == 3 * 27
    rate = 0.001  # a whole network learns faster than a shallow one
    found, expected = losses(step, rate=rate), losses(step_of("mobilenet_v1", "float32")[0], rate=rate)
    check_losses(found, expected)
    assert abs(found / expected - 1).max() > 1e-4  # the roundings have an effect


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_norms_in_float32_between_float16_layers(tmp_path):
    step, _ = step_of("mobilenet_v2", "float16", "float32")
    with saved_graphs(tmp_path) as nodes:
        found = losses(step)
    check_losses(found, losses(step_of("mobilenet_v2", "float32")[0]))
    check_types(nodes, "Float16", {"BatchNorm", "BatchNormGrad", "Cast"})


def test_float16_op_by_op():
    found, expected = (losses(step_of("mobilenet_v1", kind, mode="pynative")[0], 3) for kind in ("float16", "float32"))
    np.testing.assert_allclose(found, expected, rtol=0.01)


@pytest.mark.parametrize("precision", HALVES)
def test_half_precision_is_refused_on_a_cpu(precision):
    runtime = make_config({"runtime": {"precision": precision}}).runtime
    with pytest.raises(UserError, match=f"runtime.precision: {precision} is not supported on a CPU; use float32"):
        check_precision(runtime)


def test_a_device_without_bfloat16_is_found(monkeypatch):
    """MindSpore's CPU kernels, which know float16 only, stand for a GPU's or an Ascend 910's."""
    assert (multiplies(ms.float16), multiplies(ms.bfloat16)) == (True, False)
    monkeypatch.setattr(ms, "get_context", lambda key: "GPU")
    check_precision(make_config({"runtime": {"precision": "float16"}}).runtime)
    with pytest.raises(UserError, match="runtime.precision: bfloat16 is not supported on this GPU; use float32"):
        check_precision(make_config({"runtime": {"precision": "bfloat16"}}).runtime)


@pytest.mark.slow
def test_half_precision_is_refused_before_the_data_is_read(command, tmp_path):
    (tmp_path / "c.yaml").write_text("data: {name: image_folder, root: nowhere}\nruntime: {precision: float16}\n")
    done = command("train.py", "--config", "c.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout, os.listdir(tmp_path)) == (2, "", ["c.yaml"])
    assert done.stderr == "error: runtime.precision: float16 is not supported on a CPU; use float32\n"


@pytest.mark.parametrize("compiled", [False, True])
def test_the_scale_follows_mindspores_scaler(compiled):
    overflows = np.random.default_rng(0).random(40) < 0.2
    ours, theirs = Scaler(2.0**125, 2, 3), DynamicLossScaler(2.0**125, 2, 3)

    def adjust(finite):
        ours.adjust(finite)
        return ours.scale_value, ours.counter

    adjust = ms.jit(adjust) if compiled else adjust
    for overflow in overflows:
        finite = ms.Tensor(not overflow)
        adjust(finite)
        theirs.adjust(finite)
        assert ours.scale_value.asnumpy() == theirs.scale_value.asnumpy()
        assert ours.counter.asnumpy() == theirs.counter.asnumpy()


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({"precision": "float16"}, "float32"),  # written when norms in float16 did not exist
        ({"precision": "float16", "norm_precision": "auto"}, "auto"),
        ({"precision": "float32"}, "auto"),
    ],
)
def test_a_recorded_config_keeps_its_norms(runtime, expected):
    tree = make_config({}).model_dump() | {"runtime": runtime}
    assert recorded_config(tree, "a file").runtime.norm_precision == expected
