import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.models.classifier import Preprocess
from src.models.ghostnet import GhostModule
from src.models.layers import ChannelShuffle, ConvNormAct, SqueezeExcite, initialize_weights, make_divisible, set_norm
from src.models.shufflenet_v2 import ShuffleUnit


def randomize(cell, seed=0):
    """Give all parameters and moving statistics random values; return the cell in evaluation mode."""
    generator = np.random.default_rng(seed)
    for parameter in cell.get_parameters():
        parameter.set_data(ms.Tensor(generator.uniform(0.5, 1.5, parameter.shape).astype(np.float32)))
    return cell.set_train(False)


def convolve(x, weight, stride, groups):
    """Return a convolution computed by its definition in float64, with padding of half the kernel."""
    kernel, count = weight.shape[-1], weight.shape[0]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2))
    side = [(size + 2 * (kernel // 2) - kernel) // stride + 1 for size in x.shape[2:]]
    out = np.zeros((len(x), count, *side))
    per_group = x.shape[1] // groups
    for channel, row, column in np.ndindex(*out.shape[1:]):
        start = channel // (count // groups) * per_group
        window = padded[:, start : start + per_group, row * stride :, column * stride :][:, :, :kernel, :kernel]
        out[:, channel, row, column] = (window * weight[channel]).sum((1, 2, 3))
    return out


def conv_norm_act(cell, x, stride=1, groups=1, relu=True):
    """Return the output of a `ConvNormAct` in evaluation mode, computed by its formula."""
    gamma, beta, mean, variance = (
        getattr(cell.norm, name).asnumpy().astype(np.float64).reshape(1, -1, 1, 1)
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    y = (convolve(x, cell.conv.weight.asnumpy(), stride, groups) - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    return np.maximum(y, 0) if relu else y


# Calculated by hand from the formula in MobileNetV2's reference code.
@pytest.mark.parametrize(("channels", "expected"), [(8, 8), (11.2, 16), (22.4, 24), (33.6, 32), (3, 8), (44.8, 48)])
def test_make_divisible(channels, expected):
    assert make_divisible(channels) == expected
    assert expected >= 0.9 * channels


def test_channel_shuffle_takes_a_channel_of_each_group_in_turn():
    channels, groups = 12, 3
    x = np.arange(channels, dtype=np.float32).reshape(1, channels, 1, 1)
    shuffled = ChannelShuffle(groups)(ms.Tensor(x)).asnumpy().ravel()
    expected = [group * (channels // groups) + i for i in range(channels // groups) for group in range(groups)]
    assert shuffled.tolist() == expected


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (3, 2, 4), (5, 2, 4), (1, 1, 2)])
def test_conv_norm_act_follows_its_formula(kernel, stride, groups):
    cell = randomize(ConvNormAct(4, 8, kernel, stride, groups))
    x = np.random.default_rng(1).normal(size=(2, 4, 7, 6)).astype(np.float32)
    expected = conv_norm_act(cell, x, stride, groups)
    np.testing.assert_allclose(cell(ms.Tensor(x)).asnumpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("out_channels", "ratio"), [(8, 2), (7, 2), (9, 3)])
def test_ghost_module_follows_its_formula(out_channels, ratio):
    module = randomize(GhostModule(4, out_channels, kernel_size=3, stride=2, ratio=ratio))
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 6)).astype(np.float32)
    primary = conv_norm_act(module.primary, x, stride=2)
    ghosts = conv_norm_act(module.ghosts, primary, groups=primary.shape[1])
    assert primary.shape[1] == math.ceil(out_channels / ratio)
    expected = np.concatenate([primary, ghosts], 1)[:, :out_channels]
    np.testing.assert_allclose(module(ms.Tensor(x)).asnumpy(), expected, rtol=1e-4, atol=1e-3)


def test_shuffle_unit_keeps_even_channels_and_convolves_odd_ones():
    unit = randomize(ShuffleUnit(6, 6, stride=1, equal_split=False))
    x = np.random.default_rng(1).normal(size=(2, 6, 5, 5)).astype(np.float32)
    pointwise, depthwise, last = unit.branch
    branch = conv_norm_act(pointwise, x[:, 1::2])
    branch = conv_norm_act(depthwise, branch, groups=3, relu=False)
    branch = conv_norm_act(last, branch)
    expected = np.concatenate([x[:, 0::2], branch], 1)
    np.testing.assert_allclose(unit(ms.Tensor(x)).asnumpy(), expected, rtol=1e-4, atol=1e-3)


def test_equal_split_unit_keeps_the_first_half_and_shuffles_at_the_end():
    unit = randomize(ShuffleUnit(6, 6, stride=1, equal_split=True))
    x = np.random.default_rng(1).normal(size=(2, 6, 5, 5)).astype(np.float32)
    pointwise, depthwise, last = unit.branch
    branch = conv_norm_act(pointwise, x[:, 3:])
    branch = conv_norm_act(depthwise, branch, groups=3, relu=False)
    branch = conv_norm_act(last, branch)
    expected = np.stack([x[:, :3], branch], 2).reshape(x.shape)
    np.testing.assert_allclose(unit(ms.Tensor(x)).asnumpy(), expected, rtol=1e-4, atol=1e-3)


def test_squeeze_excite_follows_its_formula():
    cell = randomize(SqueezeExcite(6, 2))
    x = np.random.default_rng(1).normal(size=(2, 6, 4, 4)).astype(np.float32)
    reduce, expand = cell.reduce, cell.expand
    hidden = np.maximum(x.mean((2, 3)) @ reduce.weight.asnumpy()[:, :, 0, 0].T + reduce.bias.asnumpy(), 0)
    gate = hidden @ expand.weight.asnumpy()[:, :, 0, 0].T + expand.bias.asnumpy()
    expected = x * np.clip(gate / 6 + 0.5, 0, 1)[:, :, None, None]
    np.testing.assert_allclose(cell(ms.Tensor(x)).asnumpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_preprocess_follows_its_formula(channels):
    mean, std = [0.485, 0.456, 0.406][:channels], [0.229, 0.224, 0.225][:channels]
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, channels), dtype=np.uint8)
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    pixels = Preprocess(mean, std)(ms.Tensor(images))
    assert pixels.dtype == ms.float32
    np.testing.assert_allclose(pixels.asnumpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("momentum", "share"), [(0.75, 0.25), (None, 0.1)])
def test_norms_take_another_epsilon_and_momentum(momentum, share):
    cell = nn.SequentialCell(ConvNormAct(2, 3, 1, activation=None))
    before = [parameter.name for parameter in cell.get_parameters()]
    set_norm(cell, epsilon=0.5, momentum=momentum)
    assert [parameter.name for parameter in cell.get_parameters()] == before
    weight = np.random.default_rng(0).normal(size=(3, 2, 1, 1)).astype(np.float32)
    cell[0].conv.weight.set_data(ms.Tensor(weight))
    x = np.random.default_rng(1).normal(size=(4, 2, 3, 3)).astype(np.float32)
    y = convolve(x, weight, 1, 1)
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3))
    out = cell.set_train(True)(ms.Tensor(x)).asnumpy()
    expected = (y - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 0.5)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cell[0].norm.moving_mean.asnumpy(), share * mean, rtol=1e-4, atol=1e-6)


def test_initial_weights_have_the_documented_standard_deviation():
    network = nn.SequentialCell(nn.Conv2d(64, 128, 3, has_bias=True), nn.Dense(256, 512))
    initialize_weights(network)
    conv, dense = network
    assert conv.weight.asnumpy().std() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert dense.weight.asnumpy().std() == pytest.approx(0.01, rel=0.02)
    assert not conv.bias.asnumpy().any()
    assert not dense.bias.asnumpy().any()
