"""The native kernels for other processors than this machine's, against float64 NumPy: ARM in an emulator, and AVX2."""

import platform
import shutil
import subprocess

import numpy as np
import pytest

from src.kernels import build, operators
from src.kernels.operators import NormSettings
from src.kernels.settings import numbers
from tests.conftest import ROOT
from tests.kernels.formulas import batch_norm, convolution, max_pool

# Compiler, flags, and the emulator with its options. CONTRIBUTING.md says how to install those for ARM.
PROCESSORS = {
    "arm": ("aarch64-linux-gnu-g++", [], ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]),
    "avx2": ("g++", ["-march=haswell"], []),
}
EPSILON = 1e-3


@pytest.fixture(scope="module", params=PROCESSORS)
def call(request, tmp_path_factory):
    """Return a function that calls an operator: call(name, inputs, shapes of the outputs) -> all arguments."""
    compiler, flags, emulator = PROCESSORS[request.param]
    if not all(map(shutil.which, (compiler, *emulator[:1]))):
        pytest.skip(f"{compiler} or {emulator[:1]} is not installed")
    if request.param == "avx2" and (platform.machine() != "x86_64" or not build.is_fast()):
        pytest.skip("this machine has no AVX2")
    folder = tmp_path_factory.mktemp(request.param)
    command = [compiler, "-std=c++17", "-O1", "-pthread", *flags]
    library, program = str(folder / "kernels.so"), str(folder / "call")
    subprocess.run([*command, "-fPIC", "-shared", str(build.SOURCE), "-o", library], check=True)
    source = str(ROOT / "tests" / "kernels" / "call.cpp")
    subprocess.run([*command, source, "-ldl", "-o", program], check=True)
    process = subprocess.Popen([*emulator, program, library], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(name, inputs, outputs):
        # An output begins as NaN, so that an element that is not written is found.
        arrays = [np.float32(array) for array in inputs] + [np.full(shape, np.nan, np.float32) for shape in outputs]
        process.stdin.write(f"{name} {len(arrays)}\n".encode())
        for array in arrays:
            process.stdin.write(" ".join(map(str, array.shape)).encode() + b"\n" + array.tobytes())
        process.stdin.flush()
        return [np.frombuffer(process.stdout.read(a.nbytes), np.float32).reshape(a.shape) for a in arrays]

    yield call
    process.stdin.close()
    assert process.wait() == 0


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(actual, expected, tolerance=1e-4):
    assert len(actual) == len(expected)
    for result, reference in zip(actual, expected):
        np.testing.assert_allclose(result, reference, rtol=tolerance, atol=tolerance * np.abs(reference).max())


SHAPES = [(3, 12, 9, 7), (2, 6, 17, 30), (5, 20, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_products(call, shape):
    batch, channels, height, width = shape
    x = random(*shape)
    for groups in (1, 2):
        weight, dy = random(10, channels // groups, 1, 1, seed=1), random(batch, 10, height, width, seed=2)
        (y,), gradients = convolution(x, weight, dy, 1, 0, groups)
        assert_close(call("pointwise_forward", [x, weight], [dy.shape])[-1:], [y])
        assert_close(call("pointwise_backward", [x, dy, weight], [x.shape, weight.shape])[-2:], gradients)
    x = x[:, :3]
    for stride in (1, 2):
        weight = random(5, 3, 3, 3, seed=1)
        dy = random(batch, 5, (height - 1) // stride + 1, (width - 1) // stride + 1, seed=2)
        settings = numbers("DenseSettings", {"stride": stride, "padding": 1})
        (y,), (dx, dweight) = convolution(x, weight, dy, stride, 1, 1)
        assert_close(call("dense_forward", [x, weight, settings], [dy.shape])[-1:], [y])
        assert_close(call("dense_weight_gradient", [x, dy, weight, settings], [weight.shape])[-1:], [dweight])
        assert_close(call("dense_input_gradient", [x, dy, weight, settings], [x.shape])[-1:], [dx])


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("act", operators.ACTIVATIONS)
def test_norm(call, shape, act):
    channels = shape[1]
    x, dy = random(*shape) * 3 + 20, random(*shape, seed=1)
    gamma, beta = random(channels, seed=2), random(channels, seed=3)
    settings = numbers("NormSettings", operators.norm_values(NormSettings(EPSILON, 0.9, act, True)))
    y, dx, dgamma, dbeta, mean, variance = batch_norm(x, gamma, beta, dy, act, EPSILON)
    inputs = [x, gamma, beta, np.zeros(channels), np.ones(channels), settings]
    results = call("norm_forward", inputs, [x.shape, gamma.shape, gamma.shape])
    assert_close([results[6], results[3], results[4]], [y, 0.1 * mean, 0.9 + 0.1 * variance])
    inputs = [x, dy, gamma, beta, *results[-2:], settings]
    assert_close(call("norm_backward", inputs, [x.shape, gamma.shape, gamma.shape])[-3:], [dx, dgamma, dbeta], 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_with_norms(call, shape, kernel, stride):
    batch, channels, height, width = shape
    x, weight = random(*shape), random(channels, 1, kernel, kernel, seed=1)
    dz = random(batch, channels, (height - 1) // stride + 1, (width - 1) // stride + 1, seed=2)
    parameters = [random(channels, seed=seed) for seed in (3, 4, 5, 6)]

    between = batch_norm(x, *parameters[:2], x, "ReLU6", EPSILON)[0]
    convolved = convolution(between, weight, dz, stride, kernel // 2, channels)[0][0]
    z, dconvolved, *after = batch_norm(convolved, *parameters[2:], dz, "HSwish", EPSILON)
    dbetween, dweight = convolution(between, weight, dconvolved, stride, kernel // 2, channels)[1]
    _, dx, *before = batch_norm(x, *parameters[:2], dbetween, "ReLU6", EPSILON)

    norms = {
        key: operators.norm_values(NormSettings(EPSILON, 0.9, act, True))
        for key, act in (("before", "ReLU6"), ("after", "HSwish"))
    }
    settings = numbers("DepthwiseSettings", {"stride": stride, "keep": False, "shuffle_groups": 1, **norms})
    moving = [np.zeros(channels), np.ones(channels)]
    inputs = [x, *parameters[:2], *moving, weight, *parameters[2:], *moving, settings]
    results = call("depthwise_forward", inputs, [dz.shape, *[(channels,)] * 4])
    assert_close(results[11:12], [z])
    assert_close(results[3:5], [0.1 * before[2], 0.9 + 0.1 * before[3]])
    inputs = [x, dz, *parameters[:2], *results[12:14], weight, *parameters[2:], *results[14:16], settings]
    shapes = [x.shape, (channels,), (channels,), weight.shape, (channels,), (channels,)]
    expected = [dx, *before[:2], dweight, *after[:2]]
    assert_close(call("depthwise_backward", inputs, shapes)[-6:], expected, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_maps(call, shape):
    x, y = random(*shape), random(*shape, seed=1)
    dy = random(*shape[:2], (shape[2] + 1) // 2, (shape[3] + 1) // 2, seed=2)
    pooled, dx = max_pool(x, dy)
    assert_close(call("max_pool_forward", [x], [dy.shape])[-1:], [pooled])
    assert_close(call("max_pool_backward", [x, dy], [x.shape])[-1:], [dx])
    assert_close(call("mean_forward", [x], [(*shape[:2], 1, 1)])[-1:], [x.mean((2, 3), keepdims=True)])
    assert_close(call("add_relu_forward", [x, y], [shape])[-1:], [np.maximum(x + y, 0)])
    settings = numbers("HalvesSettings", {"interleaved": True})
    both = np.stack([x, y], 2).reshape(shape[0], 2 * shape[1], *shape[2:])
    assert_close(call("merge_channels", [x, y, settings], [both.shape])[-1:], [both])
