"""Each native operator, forward and backward, against MindSpore's own operators and against float64 NumPy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from src.kernels import build, cells, operators
from tests.kernels.formulas import batch_norm, convolution, max_pool

SHAPES = [  # batch, channels, height, width
    (4, 8, 14, 14),
    (2, 5, 15, 13),  # odd sizes, no multiple of a vector's width
    (1, 3, 1, 1),
    (3, 1, 7, 7),
    (2, 16, 8, 33),
    (2, 4, 2, 3),
]
ACTIVATIONS = {None: None, "ReLU": nn.ReLU, "ReLU6": nn.ReLU6, "HSwish": nn.HSwish}


@pytest.fixture(scope="module")
def library():
    library = build.build()
    build.load(library, threads=2)
    return library


def random(shape, seed=0, scale=1.0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale + shift).astype(np.float32)


def run(function, *arrays, seed=9):
    """Return the output of `function` and the gradients of its inputs, for a random gradient of the output."""
    inputs = [ms.Tensor(array) for array in arrays]
    out = function(*inputs)
    outs = out if isinstance(out, tuple) else (out,)
    gradients = [ms.Tensor(random(one.shape, seed + i)) for i, one in enumerate(outs)]

    def total(*inputs):
        out = function(*inputs)
        outs = out if isinstance(out, tuple) else (out,)
        return sum((one * gradient).sum() for one, gradient in zip(outs, gradients))

    backward = ops.grad(total, tuple(range(len(inputs))))(*inputs)
    backward = backward if isinstance(backward, tuple) else (backward,)
    return [one.asnumpy() for one in outs], [one.asnumpy() for one in backward]


def assert_close(actual, expected, tolerance=2e-5):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * max(1.0, np.abs(other).max()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_pointwise(library, shape, groups):
    batch, channels, height, width = shape
    x = random((batch, channels * groups, height, width))
    weight = random((7 * groups, channels, 1, 1), 1)
    native = run(operators.pointwise(library), x, weight)
    stock = ops.Conv2D(7 * groups, 1, group=groups)
    formula = convolution(x, weight, random(native[0][0].shape, 9), 1, 0, groups)
    for actual, own, exact in zip(native, run(stock, x, weight), formula):
        assert_close(actual, own)
        assert_close(actual, exact)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 15, 13), (1, 3, 1, 1), (3, 4, 7, 70)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_dense(library, shape, kernel, stride):
    x, weight = random(shape), random((10, shape[1], kernel, kernel), 1)
    native = run(operators.dense(library, stride, kernel // 2), x, weight)
    stock = ops.Conv2D(10, kernel, pad_mode="pad", pad=kernel // 2, stride=stride)
    formula = convolution(x, weight, random(native[0][0].shape, 9), stride, kernel // 2, 1)
    for actual, own, exact in zip(native, run(stock, x, weight), formula):
        assert_close(actual, own)
        assert_close(actual, exact)


class Stock(nn.Cell):
    """Norm, activation, shuffle, depthwise convolution, norm, activation of MindSpore; both norms can be left out."""

    def __init__(self, channels, kernel, stride, first, second, act, runs, keep):
        super().__init__()
        self.first = nn.BatchNorm2d(channels, momentum=0.8) if first else None
        self.second = nn.BatchNorm2d(channels, momentum=0.7) if second else None
        self.act = ACTIVATIONS[act]() if act else None
        self.conv = nn.Conv2d(channels, channels, kernel, stride, "pad", kernel // 2, group=channels)
        self.runs, self.keep = runs, keep
        for i, norm in enumerate(norm for norm in (self.first, self.second) if norm):
            for j, parameter in enumerate(norm.get_parameters()):
                # moving mean, moving variance, gamma, beta: all positive
                parameter.set_data(ms.Tensor(np.random.default_rng((i, j)).uniform(0.5, 2, channels), ms.float32))
        self.conv.weight.set_data(ms.Tensor(random(self.conv.weight.shape, 5)))

    def construct(self, x):
        if self.first is not None:
            x = self.first(x)
            x = x if self.act is None else self.act(x)
        kept = x
        if self.runs > 1:
            batch, channels, height, width = x.shape
            x = ops.reshape(x, (batch, self.runs, channels // self.runs, height, width))
            x = ops.reshape(ops.transpose(x, (0, 2, 1, 3, 4)), (batch, channels, height, width))
        x = self.conv(x)
        if self.second is not None:
            x = self.second(x)
            x = x if self.act is None else self.act(x)
        return ops.concat((kept, x), 1) if self.keep else x


CASES = [  # kernel, stride, first norm, second norm, activation, runs, keep
    *[(kernel, stride, True, True, act, 1, False) for kernel in (3, 5) for stride in (1, 2) for act in ACTIVATIONS],
    *[(3, stride, first, second, "ReLU", 1, False) for stride in (1, 2)
      for first, second in ((False, True), (True, False), (False, False))],
    (3, 1, True, True, "ReLU", 1, True),
    (5, 1, True, True, None, 1, True),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "stride", "first", "second", "act", "runs", "keep"), CASES)
@pytest.mark.parametrize("training", [True, False])
def test_depthwise(library, shape, kernel, stride, first, second, act, runs, keep, training):
    check_depthwise(library, shape, kernel, stride, first, second, act, runs, keep, training)


@pytest.mark.parametrize(("channels", "runs"), [(12, 3), (12, 4), (6, 6)])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_of_shuffled_channels(library, channels, runs, stride):
    check_depthwise(library, (2, channels, 9, 9), 3, stride, True, True, "ReLU", runs, False, True)


def check_depthwise(library, shape, kernel, stride, first, second, act, runs, keep, training):
    # A channel with one value, or nearly so, has no variance to divide by: what comes out is rounding, not a result.
    if training and shape[0] * shape[2] * shape[3] < 2 * stride**2:
        pytest.skip("BatchNorm of one value")
    results = []
    for native in (False, True):
        cell = Stock(shape[1], kernel, stride, first, second, act, runs, keep)
        norms = [norm for norm in (cell.first, cell.second) if norm]
        weights = [cell.conv.weight, *[parameter for norm in norms for parameter in (norm.gamma, norm.beta)]]
        if native:
            pairs = [(norm, cell.act) if norm else None for norm in (cell.first, cell.second)]
            cell = cells.Depthwise(library, pairs[0], cell.conv, pairs[1], keep, runs)
        cell.set_train(training)
        x = ms.Tensor(random(shape, 3, 2.0, 1.0))
        out = cell(x)
        gradient = ms.Tensor(random(out.shape, 4))
        statistics = [one.asnumpy().copy() for norm in norms for one in (norm.moving_mean, norm.moving_variance)]

        def total(x, cell=cell, gradient=gradient):
            return (cell(x) * gradient).sum()

        dx, dweights = ops.grad(total, 0, weights)(x)
        results.append([out.asnumpy(), dx.asnumpy(), *[one.asnumpy() for one in dweights], *statistics])
    assert_close(results[1], results[0], 2e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_norm_activation(library, shape, act):
    if shape[0] * shape[2] * shape[3] == 1:
        pytest.skip("BatchNorm of one value")
    norm = nn.BatchNorm2d(shape[1], momentum=0.9)
    x, gamma, beta = random(shape, 1, 3.0, 20.0), random(shape[1], 2), random(shape[1], 3)
    norm.gamma.set_data(ms.Tensor(gamma))
    norm.beta.set_data(ms.Tensor(beta))
    native = cells.Norm(library, norm, ACTIVATIONS[act]() if act else None).set_train(True)
    gradient = random(shape, 4)

    def total(x):
        return (native(x) * ms.Tensor(gradient)).sum()

    out = native(ms.Tensor(x)).asnumpy()
    mean, variance = norm.moving_mean.asnumpy().copy(), norm.moving_variance.asnumpy().copy()
    dx, (dgamma, dbeta) = ops.grad(total, 0, [norm.gamma, norm.beta])(ms.Tensor(x))
    exact = batch_norm(x, gamma, beta, gradient, act, 1e-5)
    actual = [out, dx.asnumpy(), dgamma.asnumpy(), dbeta.asnumpy()]
    assert_close(actual, exact[:4], 1e-4)
    assert_close([mean, variance], [0.1 * exact[4], 0.9 + 0.1 * exact[5]], 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_max_pool(library, shape):
    # Few values, so that many windows have several largest elements.
    x = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
    native = run(operators.max_pool(library), x)
    stock = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)
    assert_close(native[0], run(stock, x)[0])
    out, dx = max_pool(x, random(native[0][0].shape, 9))
    assert_close([*native[0], *native[1]], [out, dx])


@pytest.mark.parametrize("shape", SHAPES)
def test_average_pool(library, shape):
    x = random(shape)
    stock = nn.AvgPool2d(3, 2, pad_mode="pad", padding=1)
    for actual, expected in zip(run(cells.AveragePool(library, shape[1]), x), run(stock, x)):
        assert_close(actual, expected)


@pytest.mark.parametrize(("first", "second", "interleaved"), [(3, 5, False), (4, 4, False), (4, 4, True)])
def test_channels_are_merged_and_dealt(library, first, second, interleaved):
    a, b = random((2, first, 5, 3)), random((2, second, 5, 3), 1)
    both = np.concatenate([a, b], 1)
    if interleaved:
        both = np.stack([a, b], 2).reshape(both.shape)
    (merged,), gradients = run(operators.merge(library, first, interleaved), a, b)
    dealt, (gradient,) = run(operators.deal(library, first, interleaved), both)
    assert (merged == both).all()
    assert all((one == other).all() for one, other in zip(dealt, (a, b)))
    expected = run(operators.deal(library, first, interleaved), random(both.shape, 9))[0]
    assert all((one == other).all() for one, other in zip(gradients, expected))
    assert (
        gradient == run(operators.merge(library, first, interleaved), *[random(a.shape, 9), random(b.shape, 10)])[0][0]
    ).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_add_relu(library, shape):
    a, b, dy = random(shape), random(shape, 1), random(shape, 9)
    (y,), gradients = run(operators.add_relu(library), a, b)
    assert_close([y, *gradients], [np.maximum(a + b, 0), *[dy * (a + b > 0)] * 2])


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_and_scale(library, shape):
    x, factors = random(shape), random((*shape[:2], 1, 1), 1)
    (mean,), (dx,) = run(operators.mean(library), x)
    assert_close([mean], [x.astype(np.float64).mean((2, 3), keepdims=True)])
    assert_close([dx], [np.broadcast_to(random(mean.shape, 9), shape) / (shape[2] * shape[3])])
    (scaled,), gradients = run(operators.scale(library), x, factors)
    dy = random(shape, 9)
    assert_close([scaled, *gradients], [x * factors, dy * factors, (dy * x).sum((2, 3), keepdims=True)])
