import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from src.config import make_config
from src.engine.optimizer import create_optimizer, learning_rates
from src.engine.step import make_train_step


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
    step = make_train_step(network, create_optimizer(config, network, rates), 0.1, compiled)

    velocity = [np.zeros_like(weight), np.zeros_like(bias)]
    for rate in rates:
        x, labels = generator.normal(size=(5, 3)).astype(np.float32), generator.integers(0, 2, 5).astype(np.int32)
        loss, logits = step(ms.Tensor(x), ms.Tensor(labels))

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
