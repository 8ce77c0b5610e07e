"""The operators of the training and evaluation graphs, and the devices on which MindSpore documents them.

docs/scale.md has the list. The graphs are those that Ascend and GPU get: stock operators, before a device changes them.
The networks are shallow: they have every kind of layer, so they have every operator of the whole networks.
"""

import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore.ops import operations
from mindspore.ops.auto_generate import gen_ops_prim
from mindspore.ops.operations import _grad_ops, _inner_ops

from src.config.load import make_config
from src.evaluation.evaluate import make_eval_step
from src.models import NETWORKS, create_model
from src.runtime.precision import set_precision
from src.training.distillation import Teacher
from src.training.moving_average import DeviceMovingAverage
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep
from tests.conftest import ROOT
from tests.graphs import saved_graphs

BATCH, CLASSES, SIDE = 4, 5, 32
DEVICES = {"Ascend", "GPU"}
# MindSpore documents no gradient operator. It has one for the devices of the operator whose gradient it computes.
GRADIENT_OF = {
    "AvgPool3DGrad": "AvgPool3D",
    "AvgPoolGrad": "AvgPool",
    "BatchNormGrad": "BatchNorm",
    "BiasAddGrad": "BiasAdd",
    "Conv2DBackpropFilter": "Conv2D",
    "Conv2DBackpropInput": "Conv2D",
    "GatherDGradV2": "GatherD",
    "HSigmoidGrad": "HSigmoid",
    "HSwishGrad": "HSwish",
    "LogSoftmaxGrad": "LogSoftmax",
    "MaxPool3DGradWithArgmax": "MaxPool3DWithArgmax",
    "MaxPoolGrad": "MaxPool",
    "ReLU6Grad": "ReLU6",
    "ReluGrad": "ReLU",
    "RsqrtGrad": "Rsqrt",
}
# Operators without a documentation, which MindSpore itself puts into graphs: a Tensor times a number, the sum in the
# gradient of every broadcast, and a copy. The wheel has these files or names for each device.
KERNELS = Path(ms.__file__).parent / "include" / "mindspore" / "ops" / "kernel"
UNDOCUMENTED = {"Muls": "muls.h", "SumExt": "sum_ext.h", "TensorMove": None}
PLUGINS = {"Ascend": "libmindspore_ops_ascend.so", "GPU": "libmindspore_gpu.so.11.6"}
SMALL = ["model.name=mobilenet_v1", "model.width=0.25"]
TECHNIQUES = {
    **{name: [f"model.name={name}", "model.width=1.0"] for name in NETWORKS},
    **{f"optimizer {name}": [*SMALL, f"optimizer.name={name}"] for name in ("rmsprop", "adamw", "lamb", "lion")},
    "no Nesterov momentum": [*SMALL, "optimizer.nesterov=false"],
    "float16": [*SMALL, "runtime.precision=float16"],
    "float16, norms in float32": [*SMALL, "runtime.precision=float16", "runtime.norm_precision=float32"],
    "gradient accumulation": [*SMALL, "train.accumulate=2"],
    "clipping by norm": [*SMALL, "train.clip_norm=1.0"],
    "clipping by value": [*SMALL, "train.clip_value=1.0"],
    "mixup, cutmix, label smoothing": [*SMALL, "augment.mixup=0.2", "augment.cutmix=1.0", "train.label_smoothing=0.1"],
    "dropout": [*SMALL, "model.dropout=0.2"],
    "distillation": [*SMALL, "distill.teacher=t"],
    "moving average of the weights": [*SMALL, "train.ema_decay=0.9"],
    "freezing": [*SMALL, "model.freeze=2"],
    "padding same, MobileNetV3": ["model.name=mobilenet_v3_small", "model.padding=same"],
    "padding same, ShuffleNetV1": ["model.name=shufflenet_v1", "model.padding=same"],
    "padding same, equal split": ["model.name=shufflenet_v2", "model.padding=same", "model.layout=equal_split"],
}
ELSEWHERE = ["AllReduce", "AllGather", "Broadcast"]  # between ranks, which this test does not start


def operators_of(overrides, folder):
    """Return the operators in the graphs of a training step, of the moving average and of an evaluation."""
    config = make_config({"data": {"image_size": SIDE}}, ["runtime.kernels=stock", *overrides])
    ms.set_context(mode=ms.GRAPH_MODE)
    classifier = create_model(config.model, config.data, CLASSES).set_train(True)
    classifier.freeze(config.model.freeze)
    scaler, teacher = set_precision(classifier, config.runtime), None
    if config.distill.teacher is not None:
        teacher = Teacher(create_model(config.model, config.data, CLASSES), classifier)
        for parameter in teacher.get_parameters():
            parameter.requires_grad, parameter.name = False, f"teacher.{parameter.name}"
    step = TrainStep(classifier, create_optimizer(config, classifier), config, teacher=teacher, scaler=scaler)
    images = ms.Tensor(np.zeros((BATCH, SIDE, SIDE, 3), np.uint8))
    step.begin(np.full(1, 0.1, np.float32))
    with saved_graphs(folder) as nodes:
        for _ in range(step.accumulate):
            step(images, ms.Tensor(np.zeros(BATCH, np.int32)))
        if config.train.ema_decay is not None:
            average = DeviceMovingAverage(classifier, config.train.ema_decay, compiled=True)
            average.begin(0, 1)
            average.update()
        classifier.set_train(False)
        make_eval_step(classifier, compiled=True)(images)
    return {node.name for node in nodes}


def platforms(name):
    """Return the devices that the docstring of an operator names, or of the function to which its docstring refers."""
    for module in (operations, gen_ops_prim, _grad_ops, _inner_ops):
        text = getattr(getattr(module, name, None), "__doc__", None) or ""
        function = re.search(r"Refer to :func:`mindspore\.ops\.(\w+)`", text)
        if function:
            text += getattr(getattr(ms.ops, function[1], None), "__doc__", None) or ""
        found = re.search(r"Supported Platforms:\s*\n\s*(``.+)", text)
        if found:
            return set(re.findall(r"``(\w+)``", found[1]))
    return set()


def listed_in_docs():
    """Return the operators that the section of docs/scale.md lists."""
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    section = text.partition("\n## Operators\n")[2].partition("\n## ")[0]
    return {name for row in re.findall(r"^\|.*\|$", section, re.M)[2:] for name in re.findall(r"`(\w+)`", row)}


def check_operators(found):
    """The page lists these operators, and MindSpore documents them for Ascend and GPU."""
    assert found <= listed_in_docs()
    for name in found - UNDOCUMENTED.keys():
        assert platforms(GRADIENT_OF.get(name, name)) >= DEVICES, name


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_ascend_and_gpu_have_every_operator(technique, tmp_path):
    found = operators_of(TECHNIQUES[technique], tmp_path)
    assert found >= {"Conv2D", "BatchNorm", "ScatterUpdate", "Argmax", "Gather"}
    check_operators(found)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_ascend_and_gpu_have_the_operators_between_ranks(name):
    assert platforms(name) >= DEVICES
    assert name in listed_in_docs()


@pytest.mark.parametrize("device", sorted(DEVICES))
@pytest.mark.parametrize("name", UNDOCUMENTED)
def test_the_wheel_has_kernels_of_operators_without_documentation(name, device):
    if UNDOCUMENTED[name] is not None:
        assert list((KERNELS / device.lower()).rglob(UNDOCUMENTED[name]))
    else:
        assert name.encode() in (Path(ms.__file__).parent / "lib" / "plugin" / PLUGINS[device]).read_bytes()


def test_the_check_finds_an_operator_that_a_gpu_lacks():
    """`%` of Tensors, which the training step avoids: no documentation, and no kernel of a GPU."""
    assert platforms("RemainderTensorScalar") == set()
    assert not list((KERNELS / "gpu").rglob("remainder_tensor_scalar.h"))
    assert list((KERNELS / "ascend").rglob("remainder_tensor_scalar.h"))
