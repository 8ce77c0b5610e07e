import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from src.config import make_config
from src.engine.optimizer import create_optimizer, learning_rates
from src.engine.step import make_train_step
from src.errors import UserError
from src.models import create_model


def schedule(name, warmup, epochs=10):
    return make_config(
        {
            "schedule": {"name": name, "warmup_epochs": warmup},
            "train": {"epochs": epochs},
            "optimizer": {"lr": 0.4},
        }
    )


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("cosine", lambda p: 0.5 * (1 + math.cos(math.pi * p))),
        ("linear", lambda p: 1 - p),
        ("constant", lambda p: 1.0),
    ],
)
@pytest.mark.parametrize("warmup", [0, 2, 0.5, 10])
def test_schedule_follows_its_formula(name, formula, warmup):
    steps = 6
    rates = learning_rates(schedule(name, warmup), steps)
    assert rates.dtype == np.float32
    assert len(rates) == 60
    rising = warmup * steps
    for step, rate in enumerate(rates):
        if step < rising:
            assert rate == pytest.approx(0.4 * (step + 1) / rising)
        else:
            assert rate == pytest.approx(0.4 * formula((step - rising) / (60 - rising)), abs=1e-7)


class Linear(nn.Cell):
    """Logits without a preprocessing: (N, 3) float32 to (N, 2)."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.dense = nn.Dense(3, 2)

    def construct(self, x):
        return self.dense(x + 0 * self.norm(x))


@pytest.mark.parametrize(("nesterov", "compiled"), [(True, False), (False, False), (True, True)])
def test_steps_follow_momentum_sgd_with_decay_on_weights_only(nesterov, compiled):
    config = make_config(
        {
            "optimizer": {"lr": 0.3, "momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.1},
            "schedule": {"name": "linear"},
            "train": {"epochs": 3, "label_smoothing": 0.1},
        }
    )
    generator = np.random.default_rng(0)
    network = Linear().set_train(True)
    weight, bias = generator.normal(size=(2, 3)), generator.normal(size=2)
    network.dense.weight.set_data(ms.Tensor(weight.astype(np.float32)))
    network.dense.bias.set_data(ms.Tensor(bias.astype(np.float32)))
    rates = learning_rates(config, 1)
    step = make_train_step(network, create_optimizer(config, network), 0.1, compiled)

    velocity = [np.zeros_like(weight), np.zeros_like(bias)]
    for rate in rates:
        x, labels = generator.normal(size=(5, 3)).astype(np.float32), generator.integers(0, 2, 5).astype(np.int32)
        loss, logits = step(ms.Tensor(x), ms.Tensor(labels), ms.Tensor(rate))

        expected_logits = x @ weight.T + bias
        probabilities = np.exp(expected_logits) / np.exp(expected_logits).sum(1, keepdims=True)
        targets = np.eye(2)[labels] * 0.9 + 0.1 / 2
        assert float(loss.asnumpy()) == pytest.approx(-(targets * np.log(probabilities)).sum(1).mean(), rel=1e-4)
        np.testing.assert_allclose(logits.asnumpy(), expected_logits, rtol=1e-4, atol=1e-5)

        error = (probabilities - targets) / len(x)
        gradients = [error.T @ x + 0.1 * weight, error.sum(0)]
        velocity = [0.8 * v + g for v, g in zip(velocity, gradients)]
        updates = [g + 0.8 * v if nesterov else v for v, g in zip(velocity, gradients)]
        weight, bias = weight - rate * updates[0], bias - rate * updates[1]
    np.testing.assert_allclose(network.dense.weight.asnumpy(), weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.dense.bias.asnumpy(), bias, rtol=1e-4, atol=1e-5)
    assert (network.norm.gamma.asnumpy() == 1).all()
    assert float(ops.norm(network.norm.beta).asnumpy()) == 0


def test_head_has_its_own_learning_rate():
    config = make_config(
        {
            "model": {"width": 0.5},
            "optimizer": {"lr": 0.1, "head_lr": 0.4, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
            "schedule": {"name": "constant"},
        }
    )
    classifier = create_model(config.model, config.data, 3)
    before = {parameter.name: parameter.asnumpy().copy() for parameter in classifier.trainable_params()}
    optimizer = create_optimizer(config, classifier)
    gradients = tuple(ops.ones_like(parameter) for parameter in optimizer.parameters)
    optimizer(gradients, ms.Tensor(0.1, ms.float32))
    for parameter in classifier.trainable_params():
        step = before[parameter.name] - parameter.asnumpy()
        np.testing.assert_allclose(step, 0.4 if parameter.name.startswith("head.") else 0.1, rtol=1e-4)


@pytest.mark.parametrize("part", ["backbone", 2])
def test_frozen_part_keeps_weights_and_statistics(part):
    config = make_config({"model": {"name": "mobilenet_v2", "width": 0.25, "freeze": part}, "train": {"epochs": 1}})
    classifier = create_model(config.model, config.data, 3)
    classifier.freeze(config.model.freeze)
    before = {parameter.name: parameter.asnumpy().copy() for parameter in classifier.get_parameters()}
    optimizer = create_optimizer(config, classifier)
    step = make_train_step(classifier, optimizer, 0.0, compiled=False)
    classifier.set_train(True)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    step(ms.Tensor(images), ms.Tensor(np.int32([0, 1, 2, 0])), ms.Tensor(0.1, ms.float32))
    changed = {parameter.name for parameter in classifier.get_parameters()
               if (parameter.asnumpy() != before[parameter.name]).any()}  # fmt: skip
    kept = ("backbone.stem.", "backbone.blocks.0.", "backbone.blocks.1.") if part == 2 else ("backbone.",)
    assert not any(name.startswith(kept) for name in changed)
    assert {"head.weight", "head.bias"} <= changed
    if part == 2:
        assert "backbone.blocks.2.layers.0.norm.moving_mean" in changed


def test_freezing_more_blocks_than_there_are_is_an_error():
    config = make_config({"model": {"name": "mobilenet_v2", "width": 0.25, "freeze": 99}})
    with pytest.raises(UserError, match="model.freeze: 99 is more than the 17 blocks"):
        create_model(config.model, config.data, 3).freeze(config.model.freeze)
