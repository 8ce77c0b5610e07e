"""Whole networks with native kernels against the same networks with stock operators."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.config.load import make_config
from src.kernels import build as build_module
from src.kernels.convert import use_kernels
from src.models import NETWORKS, create_model
from src.training import optimizer as optimizer_module
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep

CASES = [
    *[(name, {}) for name in NETWORKS],
    ("shufflenet_v2", {"layout": "equal_split"}),
    ("shufflenet_v1", {"groups": 1}),
    ("mobilenet_v2", {"stem_stride": 1}),
    ("shufflenet_v2", {"stem_stride": 1}),
    *[(name, {"padding": "same"}) for name in ("shufflenet_v1", "shufflenet_v2", "mobilenet_v3_small")],
    ("mindcv/mobilenet_v1_025", {}),
    ("mindcv/shufflenet_v1_g3_05", {}),
]


def build(name, settings, kernels):
    """Return a classifier with random weights and statistics.

    BatchNorm outputs positive values, so no activation is near its kink. There, rounding alone would change a gradient.
    """
    model = {"name": name, **settings}
    if name in NETWORKS:
        model["width"] = min(NETWORKS[name].variants)
    config = make_config({"model": model, "data": {"image_size": 96}, "runtime": {"kernels": kernels}})
    network = create_model(config.model, config.data, 7)
    generator = np.random.default_rng(0)
    for parameter in network.get_parameters():
        kind = parameter.name.rsplit(".", 1)[1]
        if kind in ("gamma", "beta", "moving_variance"):
            low, high = {"gamma": (0.3, 0.4), "beta": (3, 4), "moving_variance": (0.5, 1.5)}[kind]
            value = generator.uniform(low, high, parameter.shape)
        else:
            fan = np.prod(parameter.shape[1:]) if parameter.ndim > 1 else 10
            value = generator.normal(size=parameter.shape) / np.sqrt(fan)
        parameter.set_data(ms.Tensor(value.astype(np.float32)))
    use_kernels(network, config.runtime)
    return network


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_loss_gradients_statistics_and_logits_agree(name, settings):
    images = ms.Tensor(np.random.default_rng(1).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8))
    labels = ms.Tensor(np.int32([0, 3, 6, 1]))
    criterion = nn.CrossEntropyLoss()
    results = []
    for kernels in ("native", "stock"):
        network = build(name, settings, kernels).set_train(True)

        def forward(images, labels, network=network):
            return criterion(network(images), labels)

        parameters = network.trainable_params()
        loss, gradients = ms.value_and_grad(forward, None, parameters)(images, labels)
        result = {parameter.name: gradient.asnumpy() for parameter, gradient in zip(parameters, gradients)}
        result["loss"] = loss.asnumpy()
        for parameter in network.get_parameters():
            if not parameter.requires_grad:
                result[parameter.name] = parameter.asnumpy()
        result["logits"] = network.set_train(False)(images).asnumpy()
        results.append(result)
    native, stock = results
    assert native.keys() == stock.keys()
    largest = max(np.abs(stock[parameter.name]).max() for parameter in parameters)
    for key, expected in stock.items():
        # Some gradients are zero except for rounding: the next BatchNorm removes the parameter's shift or factor.
        tolerance = max(1e-4 * np.abs(expected).max(), 1e-6 * largest)
        np.testing.assert_allclose(native[key], expected, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", ["shufflenet_v2", "ghostnet"])
def test_steps_are_bit_identical_on_any_number_of_threads(name):
    images = ms.Tensor(np.random.default_rng(1).integers(0, 256, (9, 48, 48, 3), dtype=np.uint8))
    labels = ms.Tensor(np.arange(9, dtype=np.int32) % 7)
    results = []
    for threads in (1, 2, 2, 3):
        network = build(name, {}, "native").set_train(True)
        build_module.load(build_module.build(), threads)
        config = make_config({"train": {"label_smoothing": 0.1}, "runtime": {"mode": "pynative"}})
        step = TrainStep(network, create_optimizer(config, network), config)
        step.begin(np.full(3, 0.1, np.float32))
        for _ in range(3):
            step(images, labels)
        results.append({parameter.name: parameter.asnumpy() for parameter in network.get_parameters()})
    for other in results[1:]:
        assert all((other[key] == value).all() for key, value in results[0].items())


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "ghostnet", "shufflenet_v2"])
@pytest.mark.parametrize("part", [1, 2, "backbone"])
def test_frozen_part_keeps_weights_and_statistics(name, part):
    model = {"name": name, "width": min(NETWORKS[name].variants), "freeze": part}
    config = make_config({"model": model, "runtime": {"kernels": "native", "mode": "pynative"}})
    network = create_model(config.model, config.data, 3)
    network.freeze(part)
    frozen = {parameter.name for cell in network.frozen for parameter in cell.get_parameters()}
    before = {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}
    use_kernels(network, config.runtime)
    step = TrainStep(network.set_train(True), create_optimizer(config, network), config)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    step.begin(np.float32([0.1]))
    step(ms.Tensor(images), ms.Tensor(np.int32([0, 1, 2, 0])))
    changed = {
        parameter.name
        for parameter in network.get_parameters()
        if (parameter.asnumpy() != before[parameter.name]).any()
    }
    assert not changed & frozen
    statistics = {key for key in before if "moving" in key} - frozen
    assert statistics <= changed


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_sgd_for_all_weights_at_once_updates_as_for_each_weight(mode, monkeypatch):
    """Groups with other rates and decays: no weight may change before the gradients that need it are there."""
    images = ms.Tensor(np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    labels = ms.Tensor(np.int32([0, 3, 6, 1]))
    changes = []
    for library in (optimizer_module.library_of, lambda network: None):
        monkeypatch.setattr(optimizer_module, "library_of", library)
        network = build("mobilenet_v1", {"stem_stride": 1}, "native").set_train(True)
        before = {parameter.name: parameter.asnumpy().copy() for parameter in network.trainable_params()}
        config = make_config({"optimizer": {"lr": 0.1, "head_lr": 0.5, "weight_decay": 0.1}, "runtime": {"mode": mode}})
        step = TrainStep(network, create_optimizer(config, network), config)
        step.begin(np.float32([0.1]))
        step(images, labels)
        after = {parameter.name: parameter.asnumpy() for parameter in network.trainable_params()}
        changes.append({name: after[name] - value for name, value in before.items()})
    largest = max(np.abs(change).max() for change in changes[1].values())
    assert largest > 0.1
    for name, expected in changes[1].items():
        np.testing.assert_allclose(changes[0][name], expected, atol=1e-5 * largest, err_msg=name)
