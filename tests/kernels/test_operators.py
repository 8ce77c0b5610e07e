"""Each native operator, forward and backward, against MindSpore's stock operators and against float64 NumPy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from src.kernels import build, cells, operators
from src.kernels.convert import Kernels
from src.models.layers import InvertedResidual, SqueezeExcite
from src.models.shufflenet_v2 import ShuffleUnit
from tests.kernels.formulas import batch_norm, convolution, max_pool

SHAPES = [  # batch, channels, height, width
    (4, 8, 14, 14),
    (2, 5, 15, 13),  # odd sizes that are not multiples of the vector width
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
    gradients = [ms.Tensor(random(output.shape, seed + i)) for i, output in enumerate(outs)]

    def total(*inputs):
        out = function(*inputs)
        outs = out if isinstance(out, tuple) else (out,)
        return sum((output * gradient).sum() for output, gradient in zip(outs, gradients))

    backward = ops.grad(total, tuple(range(len(inputs))))(*inputs)
    backward = backward if isinstance(backward, tuple) else (backward,)
    return [output.asnumpy() for output in outs], [gradient.asnumpy() for gradient in backward]


def assert_close(actual, expected, tolerance=2e-5):
    assert len(actual) == len(expected)
    for result, reference in zip(actual, expected):
        assert result.shape == reference.shape
        atol = tolerance * max(1.0, np.abs(reference).max())
        np.testing.assert_allclose(result, reference, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_pointwise(library, shape, groups):
    batch, channels, height, width = shape
    x = random((batch, channels * groups, height, width))
    weight = random((7 * groups, channels, 1, 1), 1)
    native = run(operators.pointwise(library), x, weight)
    stock = ops.Conv2D(7 * groups, 1, group=groups)
    formula = convolution(x, weight, random(native[0][0].shape, 9), 1, 0, groups)
    for actual, reference, exact in zip(native, run(stock, x, weight), formula):
        assert_close(actual, reference)
        assert_close(actual, exact)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 15, 13), (1, 3, 1, 1), (3, 4, 7, 70)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_dense(library, shape, kernel, stride):
    x, weight = random(shape), random((10, shape[1], kernel, kernel), 1)
    native = run(operators.dense(library, stride, kernel // 2), x, weight)
    stock = ops.Conv2D(10, kernel, pad_mode="pad", pad=kernel // 2, stride=stride)
    formula = convolution(x, weight, random(native[0][0].shape, 9), stride, kernel // 2, 1)
    for actual, reference, exact in zip(native, run(stock, x, weight), formula):
        assert_close(actual, reference)
        assert_close(actual, exact)


class Stock(nn.Cell):
    """MindSpore's BatchNorm, activation, shuffle, depthwise convolution, BatchNorm and activation.

    Both BatchNorms are optional.
    """

    def __init__(self, channels, kernel, stride, before, after, act, shuffle_groups, keep):
        super().__init__()
        self.before = nn.BatchNorm2d(channels, momentum=0.8) if before else None
        self.after = nn.BatchNorm2d(channels, momentum=0.7) if after else None
        self.act = ACTIVATIONS[act]() if act else None
        self.conv = nn.Conv2d(channels, channels, kernel, stride, "pad", kernel // 2, group=channels)
        self.shuffle_groups, self.keep = shuffle_groups, keep
        for i, norm in enumerate(norm for norm in (self.before, self.after) if norm):
            for j, parameter in enumerate(norm.get_parameters()):
                # The parameters are moving mean, moving variance, gamma and beta; all get positive values.
                parameter.set_data(ms.Tensor(np.random.default_rng((i, j)).uniform(0.5, 2, channels), ms.float32))
        self.conv.weight.set_data(ms.Tensor(random(self.conv.weight.shape, 5)))

    def construct(self, x):
        if self.before is not None:
            x = self.before(x)
            x = x if self.act is None else self.act(x)
        kept = x
        if self.shuffle_groups > 1:
            batch, channels, height, width = x.shape
            x = ops.reshape(x, (batch, self.shuffle_groups, channels // self.shuffle_groups, height, width))
            x = ops.reshape(ops.transpose(x, (0, 2, 1, 3, 4)), (batch, channels, height, width))
        x = self.conv(x)
        if self.after is not None:
            x = self.after(x)
            x = x if self.act is None else self.act(x)
        return ops.concat((kept, x), 1) if self.keep else x


CASES = [  # kernel, stride, BatchNorm before, BatchNorm after, activation, groups of the shuffle, keep
    *[(kernel, stride, True, True, act, 1, False) for kernel in (3, 5) for stride in (1, 2) for act in ACTIVATIONS],
    *[(3, stride, before, after, "ReLU", 1, False) for stride in (1, 2)
      for before, after in ((False, True), (True, False), (False, False))],
    (3, 1, True, True, "ReLU", 1, True),
    (5, 1, True, True, None, 1, True),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "stride", "before", "after", "act", "shuffle_groups", "keep"), CASES)
@pytest.mark.parametrize("training", [True, False])
def test_depthwise(library, shape, kernel, stride, before, after, act, shuffle_groups, keep, training):
    check_depthwise(library, shape, kernel, stride, before, after, act, shuffle_groups, keep, training)


@pytest.mark.parametrize(("channels", "shuffle_groups"), [(12, 3), (12, 4), (6, 6)])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_of_shuffled_channels(library, channels, shuffle_groups, stride):
    check_depthwise(library, (2, channels, 9, 9), 3, stride, True, True, "ReLU", shuffle_groups, False, True)


def check_depthwise(library, shape, kernel, stride, before, after, act, shuffle_groups, keep, training):
    # With one value or few values per channel, the variance is almost 0 and the result is only rounding error.
    if training and shape[0] * shape[2] * shape[3] < 2 * stride**2:
        pytest.skip("BatchNorm of one value")
    results = []
    for native in (False, True):
        cell = Stock(shape[1], kernel, stride, before, after, act, shuffle_groups, keep)
        norms = [norm for norm in (cell.before, cell.after) if norm]
        weights = [cell.conv.weight, *[parameter for norm in norms for parameter in (norm.gamma, norm.beta)]]
        if native:
            pairs = [(norm, cell.act) if norm else None for norm in (cell.before, cell.after)]
            cell = cells.Depthwise(library, pairs[0], cell.conv, pairs[1], keep, shuffle_groups)
        cell.set_train(training)
        x = ms.Tensor(random(shape, 3, 2.0, 1.0))
        out = cell(x)
        gradient = ms.Tensor(random(out.shape, 4))
        statistics = [moving.asnumpy().copy() for norm in norms for moving in (norm.moving_mean, norm.moving_variance)]

        def total(x, cell=cell, gradient=gradient):
            return (cell(x) * gradient).sum()

        dx, dweights = ops.grad(total, 0, weights)(x)
        results.append([out.asnumpy(), dx.asnumpy(), *[gradient.asnumpy() for gradient in dweights], *statistics])
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
    # With few different values, many windows have several maxima.
    x = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
    native = run(operators.max_pool(library), x)
    stock = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)
    assert_close(native[0], run(stock, x)[0])
    out, dx = max_pool(x, random(native[0][0].shape, 9))
    assert_close([*native[0], *native[1]], [out, dx])


def test_nan_passes_through_max_pooling_and_variance(library):
    x = random((3, 2, 4, 21))
    x[1, 1, 1, [0, 5, 20]] = np.nan  # no window has two of them
    stock = nn.MaxPool2d(3, 2, pad_mode="pad", padding=1)
    (actual, dx), (expected, dx_expected) = run(operators.max_pool(library), x), run(stock, x)
    assert np.isnan(actual[0]).sum() == 2 * (1 + 2 + 1)  # row 1 and column 5 are in two windows
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_allclose(dx[0], dx_expected[0], rtol=1e-6)

    norm = nn.BatchNorm2d(2, momentum=0.9).set_train(True)
    native = cells.Norm(library, norm, nn.ReLU()).set_train(True)
    out = native(ms.Tensor(x)).asnumpy()
    statistics = [norm.moving_mean.asnumpy(), norm.moving_variance.asnumpy()]
    assert [np.isnan(values).tolist() for values in statistics] == [[False, True]] * 2
    assert np.isnan(out[:, 1]).all()
    assert not np.isnan(out[:, 0]).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_average_pool(library, shape):
    x = random(shape)
    stock = nn.AvgPool2d(3, 2, pad_mode="pad", padding=1)
    for actual, expected in zip(run(cells.AveragePool(library, shape[1]), x), run(stock, x)):
        assert_close(actual, expected)


@pytest.mark.parametrize(("channels_a", "channels_b", "interleaved"), [(3, 5, False), (4, 4, False), (4, 4, True)])
def test_channels_are_concatenated_and_split(library, channels_a, channels_b, interleaved):
    a, b = random((2, channels_a, 5, 3)), random((2, channels_b, 5, 3), 1)
    both = np.concatenate([a, b], 1)
    if interleaved:
        both = np.stack([a, b], 2).reshape(both.shape)
    (concatenated,), gradients = run(operators.concat(library, channels_a, interleaved), a, b)
    parts, (gradient,) = run(operators.split(library, channels_a, interleaved), both)
    assert (concatenated == both).all()
    assert all((part == whole).all() for part, whole in zip(parts, (a, b)))
    expected = run(operators.split(library, channels_a, interleaved), random(both.shape, 9))[0]
    assert all((actual == reference).all() for actual, reference in zip(gradients, expected))
    assert (
        gradient
        == run(operators.concat(library, channels_a, interleaved), *[random(a.shape, 9), random(b.shape, 10)])[0][0]
    ).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_add_relu(library, shape):
    a, b, dy = random(shape), random(shape, 1), random(shape, 9)
    (y,), gradients = run(operators.add_relu(library), a, b)
    assert_close([y, *gradients], [np.maximum(a + b, 0), *[dy * (a + b > 0)] * 2])


@pytest.mark.parametrize("shape", SHAPES)
def test_mean(library, shape):
    x = random(shape)
    (mean,), (dx,) = run(operators.mean(library), x)
    assert_close([mean], [x.astype(np.float64).mean((2, 3), keepdims=True)])
    assert_close([dx], [np.broadcast_to(random(mean.shape, 9), shape) / (shape[2] * shape[3])])


def assert_equal_cells(make, to_native, x, tolerance, training=True):
    """Compare outputs, gradients and moving statistics of a stock cell and of its replacement."""
    results = []
    for replace in (lambda cell: cell, to_native):
        cell = make()
        parameters = list(cell.get_parameters())
        # Different values, so that mistaken channels are seen.
        for i, parameter in enumerate(parameters):
            values = random(parameter.shape, i, 0.5, 0.0 if parameter.ndim == 4 else 1.0)
            parameter.set_data(ms.Tensor(np.abs(values) if "variance" in parameter.name else values))
        weights = [parameter for parameter in parameters if parameter.requires_grad]
        moving = [parameter for parameter in parameters if "moving" in parameter.name]
        cell = replace(cell).set_train(training)

        def total(x, cell=cell):
            out = cell(x)
            return (out * ms.Tensor(random(out.shape, 9))).sum()

        dx, gradients = ops.grad(total, 0, weights)(x)
        results.append([array.asnumpy().copy() for array in (cell(x), dx, *gradients, *moving)])
    assert_close(results[1], results[0], tolerance)


@pytest.mark.parametrize("shape", [(4, 8, 14, 14), (1, 3, 1, 1), (2, 40, 15, 13), (3, 17, 7, 7)])
@pytest.mark.parametrize("hidden", [1, 4, 35])
def test_squeeze_excite(library, shape, hidden):
    x = ms.Tensor(random(shape, 50, 3.0))  # gates between 0 and 1, and beyond both ends
    assert_equal_cells(lambda: SqueezeExcite(shape[1], hidden), Kernels(library).replacement, x, 2e-4)


@pytest.mark.parametrize("shape", [(4, 8, 14, 14), (2, 34, 15, 13), (3, 6, 7, 7), (2, 36, 2, 3), (5, 70, 28, 28)])
@pytest.mark.parametrize("equal_split", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_shuffle_unit(library, shape, equal_split, training):
    x = ms.Tensor(random(shape, 50))
    kernels = Kernels(library)
    assert_equal_cells(
        lambda: ShuffleUnit(shape[1], shape[1], 1, equal_split), lambda unit: unit.fuse(kernels), x, 5e-4, training
    )


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    ("channels", "hidden", "out", "kernel", "stride", "squeeze", "side"),
    [
        (8, 48, 8, 3, 1, None, 14),  # with residual
        (8, 48, 8, 5, 1, 12, 9),
        (16, 40, 24, 3, 2, None, 15),
        (16, 40, 24, 5, 2, 10, 28),
        (12, 12, 12, 3, 1, None, 7),  # without expansion
        (12, 12, 20, 3, 2, 3, 8),
        (17, 300, 17, 3, 1, None, 30),  # one image is a group
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_inverted_residual(library, batch, channels, hidden, out, kernel, stride, squeeze, side, training):
    x = ms.Tensor(random((batch, channels, side, side), 50))
    assert_equal_cells(
        lambda: InvertedResidual(channels, hidden, out, kernel, stride, nn.HSwish, squeeze),
        Kernels(library).replacement,
        x,
        1e-3,
        training,
    )


@pytest.mark.parametrize(
    ("name", "out_shape", "inputs", "message"),
    [
        ("mean_forward", lambda x: (*x[:2], 2, 1), [(1, 2, 3, 3)], "argument 1 has the shape (1, 2, 2, 1)"),
        ("mean_forward", lambda x, _: (*x[:2], 1, 1), [(1, 2, 3, 3)] * 2, "argument 1 has the shape (1, 2, 3, 3)"),
        ("add_relu_forward", lambda x: x, [(1, 2, 3, 3)], "too few arguments"),
        ("pointwise_forward", lambda x, w: (1, 6, 3, 3), [(1, 5, 3, 3), (6, 2, 1, 1)], "argument 0 has the shape"),
        ("max_pool_forward", lambda x: (1, 2, 3, 2), [(1, 2, 4, 4)], "argument 1 has the shape (1, 2, 3, 2)"),
        ("merge_channels", lambda a, b, _: (1, 6, 3, 3), [(1, 4, 3, 3), (1, 2, 3, 3), (2,)], "argument 2 has the"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(library, capfd, name, out_shape, inputs, message):
    operator = operators.custom(library, name, out_shape, 1, kind=("does not fit", inputs))
    with pytest.raises(RuntimeError, match=name):
        operator(*(ms.Tensor(np.ones(shape, np.float32)) for shape in inputs)).asnumpy()
    assert f"error: native kernel {name}: {message}" in capfd.readouterr().err


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 1, 1, 1), (3, 16, 17, 4)])
def test_preprocess(library, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mean, factor = random(shape[3:], 1, 30, 120), random(shape[3:], 2, 0.01, 0.02)
    actual = operators.preprocess(library)(ms.Tensor(images), ms.Tensor(mean), ms.Tensor(factor)).asnumpy()
    expected = ((images.astype(np.float64) - mean) * factor).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_with_norm_for_inference(library, act, kernel):
    x, weight = random((3, 3, 7, 9)), random((10, 3, kernel, kernel), 1)
    gamma, beta, mean, variance = (np.random.default_rng(i).uniform(0.5, 2, 10).astype(np.float32) for i in range(4))
    settings = operators.NormSettings(1e-3, 0.9, act, batch_statistics=False)
    if kernel == 1:
        native = operators.pointwise_norm(library, settings)
    else:
        native = operators.dense_norm(library, 2, 1, settings)
    convolution = ops.Conv2D(10, kernel, pad_mode="pad", pad=kernel // 2, stride=1 if kernel == 1 else 2)
    activation = ACTIVATIONS[act]() if act else nn.Identity()
    norm = ops.BatchNorm(is_training=False, epsilon=1e-3)

    def stock(x, weight, gamma, beta):
        return activation(norm(convolution(x, weight), gamma, beta, ms.Tensor(mean), ms.Tensor(variance))[0])

    actual = run(lambda *inputs: native(*inputs, ms.Tensor(mean), ms.Tensor(variance)), x, weight, gamma, beta)
    for result, reference in zip(actual, run(stock, x, weight, gamma, beta)):
        assert_close(result, reference, 1e-4)
