"""The optimizers against their formulas in NumPy; learning rates of the head; frozen parts."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from src.config.load import make_config
from src.errors import UserError
from src.models import create_model
from src.training.optimizer import create_optimizer
from src.training.schedule import learning_rates
from src.training.step import TrainStep


class Linear(nn.Cell):
    """A classifier without preprocessing: (N, 3) float32 to logits (N, 2)."""

    features = 3

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.dense = nn.Dense(3, 2)

    def preprocess(self, x):
        return x

    def classify(self, x, kept=None):
        return self.dense(x + 0 * self.norm(x))

    def construct(self, x):
        return self.classify(x)


@pytest.mark.parametrize(("nesterov", "compiled"), [(True, False), (False, False), (True, True)])
def test_steps_follow_momentum_sgd_with_decay_on_weights_only(nesterov, compiled):
    config = make_config(
        {
            "optimizer": {"lr": 0.3, "momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.1},
            "schedule": {"name": "linear"},
            "train": {"epochs": 3, "label_smoothing": 0.1},
            "runtime": {"mode": "graph" if compiled else "pynative"},
        }
    )
    generator = np.random.default_rng(0)
    network = Linear().set_train(True)
    weight, bias = generator.normal(size=(2, 3)), generator.normal(size=2)
    network.dense.weight.set_data(ms.Tensor(weight.astype(np.float32)))
    network.dense.bias.set_data(ms.Tensor(bias.astype(np.float32)))
    rates = learning_rates(config, 1)
    step = TrainStep(network, create_optimizer(config, network), config)
    step.begin(rates)

    velocity = [np.zeros_like(weight), np.zeros_like(bias)]
    for rate in rates:
        x, labels = generator.normal(size=(5, 3)).astype(np.float32), generator.integers(0, 2, 5).astype(np.int32)
        step(ms.Tensor(x), ms.Tensor(labels))
        ((loss, hits),) = step.results()

        expected_logits = x @ weight.T + bias
        probabilities = np.exp(expected_logits) / np.exp(expected_logits).sum(1, keepdims=True)
        targets = np.eye(2)[labels] * 0.9 + 0.1 / 2
        assert loss == pytest.approx(-(targets * np.log(probabilities)).sum(1).mean(), rel=1e-4)
        assert hits == (expected_logits.argmax(1) == labels).sum()

        error = (probabilities - targets) / len(x)
        gradients = [error.T @ x + 0.1 * weight, error.sum(0)]
        velocity = [0.8 * v + g for v, g in zip(velocity, gradients)]
        updates = [g + 0.8 * v if nesterov else v for v, g in zip(velocity, gradients)]
        weight, bias = weight - rate * updates[0], bias - rate * updates[1]
    np.testing.assert_allclose(network.dense.weight.asnumpy(), weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.dense.bias.asnumpy(), bias, rtol=1e-4, atol=1e-5)
    assert (network.norm.gamma.asnumpy() == 1).all()
    assert float(ops.norm(network.norm.beta).asnumpy()) == 0


class Weights(nn.Cell):
    """A weight, a bias and the weight of a head; their sizes are no multiples of a vector register's length."""

    shapes = {"weight": (13, 7), "bias": (13,), "head.weight": (3, 13)}

    def __init__(self, seed=0):
        super().__init__()
        generator = np.random.default_rng(seed)
        for attribute, (name, shape) in zip(("weight", "bias", "head"), self.shapes.items()):
            value = ms.Tensor(generator.normal(size=shape).astype(np.float32))
            setattr(self, attribute, ms.Parameter(value, name=name))


def random_gradients(generator):
    """Return gradients by parameter name, of very different magnitudes, some of their elements zero."""
    gradients = {}
    for name, shape in Weights.shapes.items():
        size = 10.0 ** generator.integers(-3, 2)
        gradients[name] = (generator.normal(size=shape) * size * (generator.random(shape) > 0.1)).astype(np.float32)
    return gradients


def sgd(w, g, rate, decay, state, settings, adapt):
    velocity = settings.momentum * state.get("v", 0) + g + decay * w
    state["v"] = velocity
    return w - rate * (g + decay * w + settings.momentum * velocity if settings.nesterov else velocity)


def rmsprop(w, g, rate, decay, state, settings, adapt):
    g = g + decay * w
    state["s"] = settings.rho * state.get("s", 1.0) + (1 - settings.rho) * g**2
    state["v"] = settings.momentum * state.get("v", 0) + rate * g / np.sqrt(state["s"] + settings.epsilon)
    return w - state["v"]


def adam_direction(g, state, settings):
    beta1, beta2 = settings.betas
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    return state["m"] / (1 - beta1**t) / (np.sqrt(state["v"] / (1 - beta2**t)) + settings.epsilon)


def adamw(w, g, rate, decay, state, settings, adapt):
    return w - rate * (adam_direction(g, state, settings) + decay * w)


def lamb(w, g, rate, decay, state, settings, adapt):
    direction = adam_direction(g, state, settings) + decay * w
    trust = np.linalg.norm(w) / np.linalg.norm(direction) if adapt and np.any(w) and np.any(direction) else 1.0
    return w - rate * trust * direction


def lion(w, g, rate, decay, state, settings, adapt):
    beta1, beta2 = settings.betas
    momentum = state.get("m", 0)
    state["m"] = beta2 * momentum + (1 - beta2) * g
    return w - rate * (np.sign(beta1 * momentum + (1 - beta1) * g) + decay * w)


FORMULAS = {
    "sgd": (sgd, {}),
    "sgd plain": (sgd, {"momentum": 0.0}),
    "sgd heavy ball": (sgd, {"nesterov": False, "momentum": 0.7}),
    "rmsprop": (rmsprop, {}),
    "rmsprop large epsilon": (rmsprop, {"epsilon": 1.0, "rho": 0.95, "momentum": 0.0}),
    "adamw": (adamw, {}),
    "adamw other": (adamw, {"betas": [0.5, 0.9], "epsilon": 1e-2, "decay_all": True}),
    "lamb": (lamb, {}),
    "lamb everywhere": (lamb, {"betas": [0.8, 0.99], "decay_all": True}),
    "lion": (lion, {}),
    "lion other": (lion, {"betas": [0.5, 0.8], "decay_all": True}),
}
EACH = ("sgd", "rmsprop", "adamw", "lamb", "lion")


def make(name, weights, **settings):
    section = {"name": name, "lr": 0.02, "head_lr": 0.05, "weight_decay": 0.3, **settings}
    config = make_config({"optimizer": section})
    return config.optimizer, create_optimizer(config, weights)


def as_given(optimizer, gradients):
    return tuple(ms.Tensor(gradients[parameter.name]) for parameter in optimizer.parameters)


@pytest.mark.parametrize("case", [(key, False) for key in FORMULAS] + [(key, True) for key in EACH], ids=str)
def test_optimizer_follows_its_formula(case):
    key, compiled = case
    formula, settings = FORMULAS[key]
    weights, generator = Weights(), np.random.default_rng(1)
    settings, optimizer = make(key.split()[0], weights, **settings)
    expected = {parameter.name: parameter.asnumpy().astype(np.float64) for parameter in weights.get_parameters()}
    assert expected.keys() == Weights.shapes.keys()
    states = {name: {} for name in expected}

    def step(gradients, rate):
        return optimizer(gradients, rate)

    step = ms.jit(step) if compiled else step
    for rate in (0.02, 0.02, 0.013, 0.007):
        gradients = random_gradients(generator)
        step(as_given(optimizer, gradients), ms.Tensor(rate, ms.float32))
        for name, value in expected.items():
            parameter_rate = rate * 2.5 if name == "head.weight" else rate
            decay = 0.3 if name != "bias" or settings.decay_all else 0.0
            expected[name] = formula(
                value, gradients[name], parameter_rate, decay, states[name], settings, adapt=name != "bias"
            )
    for parameter in optimizer.parameters:
        np.testing.assert_allclose(
            parameter.asnumpy(), expected[parameter.name], rtol=2e-5, atol=2e-6, err_msg=parameter.name
        )


def test_lamb_updates_weights_that_are_zero_and_keeps_weights_with_zero_gradients():
    weights = Weights()
    weights.weight.set_data(ops.zeros_like(weights.weight))
    _, optimizer = make("lamb", weights, weight_decay=0.0)
    before = weights.head.asnumpy().copy()
    gradients = {name: np.zeros(shape, np.float32) for name, shape in Weights.shapes.items()}
    gradients["weight"] += 1
    optimizer(as_given(optimizer, gradients), ms.Tensor(0.02, ms.float32))
    np.testing.assert_allclose(weights.weight.asnumpy(), -0.02, rtol=1e-4)
    np.testing.assert_array_equal(weights.head.asnumpy(), before)


@pytest.mark.parametrize("name", EACH)
def test_optimizer_resumes_from_a_file_with_the_same_bits(name, tmp_path):
    generator = np.random.default_rng(2)
    steps = [random_gradients(generator) for _ in range(4)]
    rate = ms.Tensor(0.02, ms.float32)
    weights = Weights()
    _, optimizer = make(name, weights)
    for i, gradients in enumerate(steps):
        if i == 2:
            saved = [*weights.get_parameters(), *optimizer.state]
            ms.save_checkpoint([{"name": p.name, "data": p} for p in saved], str(tmp_path / "state.ckpt"))
        optimizer(as_given(optimizer, gradients), rate)

    resumed_weights = Weights(seed=3)
    _, resumed = make(name, resumed_weights)
    assert all(parameter.name.startswith("optimizer.") for parameter in resumed.state)
    content = ms.load_checkpoint(str(tmp_path / "state.ckpt"))
    names = [parameter.name for parameter in [*resumed_weights.get_parameters(), *resumed.state]]
    assert sorted(names) == sorted(content)
    for parameter in [*resumed_weights.get_parameters(), *resumed.state]:
        parameter.set_data(content[parameter.name])
    for gradients in steps[2:]:
        resumed(as_given(resumed, gradients), rate)
    for expected, found in zip([*optimizer.parameters, *optimizer.state], [*resumed.parameters, *resumed.state]):
        np.testing.assert_array_equal(found.asnumpy(), expected.asnumpy(), err_msg=expected.name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adam"}, "optimizer.name: 'adam' is not one of sgd, rmsprop, adamw, lamb, lion; did you mean adamw?"),
        (
            {"name": "adamw", "momentum": 0.9},
            r"optimizer.momentum: is used with optimizer.name=sgd, rmsprop only \(found optimizer.name=adamw\)",
        ),
        (
            {"name": "rmsprop", "nesterov": True},
            r"optimizer.nesterov: is used with optimizer.name=sgd only \(found optimizer.name=rmsprop\)",
        ),
        (
            {"name": "lion", "epsilon": 1e-8},
            r"optimizer.epsilon: is used with optimizer.name=rmsprop, adamw, lamb only \(found optimizer.name=lion\)",
        ),
        (
            {"betas": [0.9, 0.99]},
            r"optimizer.betas: is used with optimizer.name=adamw, lamb, lion only \(found optimizer.name=sgd\)",
        ),
        ({"name": "adamw", "betas": [0.9]}, "optimizer.betas: .* must be two numbers between 0 and 1"),
        ({"name": "adamw", "betas": [0.9, 1.0]}, "optimizer.betas: .* must be two numbers between 0 and 1"),
        ({"weight_decay": 0.0, "decay_all": True}, "optimizer.decay_all: true needs optimizer.weight_decay above 0"),
        ({"momentum": 0.0, "nesterov": True}, "optimizer.nesterov: true needs optimizer.momentum above 0"),
    ],
    ids=str,
)
def test_invalid_optimizer_settings_are_errors(settings, message):
    with pytest.raises(UserError, match=message):
        make_config({"optimizer": settings})


def test_head_has_a_separate_learning_rate():
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
def test_frozen_part_keeps_its_weights_and_statistics(part):
    config = make_config(
        {"model": {"name": "mobilenet_v2", "width": 0.25, "freeze": part}, "runtime": {"mode": "pynative"}}
    )
    classifier = create_model(config.model, config.data, 3)
    classifier.freeze(config.model.freeze)
    before = {parameter.name: parameter.asnumpy().copy() for parameter in classifier.get_parameters()}
    optimizer = create_optimizer(config, classifier)
    step = TrainStep(classifier, optimizer, config)
    classifier.set_train(True)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    step.begin(np.float32([0.1]))
    step(ms.Tensor(images), ms.Tensor(np.int32([0, 1, 2, 0])))
    changed = {parameter.name for parameter in classifier.get_parameters()
               if (parameter.asnumpy() != before[parameter.name]).any()}  # fmt: skip
    kept = ("backbone.stem.", "backbone.blocks.0.", "backbone.blocks.1.") if part == 2 else ("backbone.",)
    assert not any(name.startswith(kept) for name in changed)
    assert {"head.weight", "head.bias"} <= changed
    if part == 2:
        assert "backbone.blocks.2.layers.0.norm.moving_mean" in changed


def test_freezing_more_blocks_than_the_network_has_is_an_error():
    config = make_config({"model": {"name": "mobilenet_v2", "width": 0.25, "freeze": 99}})
    with pytest.raises(UserError, match="model.freeze: 99 is more than the 17 blocks"):
        create_model(config.model, config.data, 3).freeze(config.model.freeze)
