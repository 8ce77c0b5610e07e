"""Our networks against mindcv, an independent implementation: the same random weights give the same logits.

mindcv pads some layers of the ShuffleNets and of MobileNetV3 as TensorFlow does ("same"). This differs from the
authors' padding if a feature map's side is even. With 225 pixels, all inputs of layers with stride 2 have odd sides.
"""

import mindcv
import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.config.load import make_config
from src.models import create_model

PAIRS = [  # ours, mindcv's name
    ({"name": "shufflenet_v1", "width": 0.5, "groups": 3}, "shufflenet_v1_g3_05"),
    ({"name": "shufflenet_v1", "width": 0.5, "groups": 8}, "shufflenet_v1_g8_05"),
    ({"name": "shufflenet_v2", "width": 1.0}, "shufflenet_v2_x1_0"),
    ({"name": "mobilenet_v1", "width": 0.25}, "mobilenet_v1_025"),
    ({"name": "mobilenet_v2", "width": 0.75}, "mobilenet_v2_075"),
    ({"name": "mobilenet_v3_small"}, "mobilenet_v3_small_100"),
    ({"name": "mobilenet_v3_large"}, "mobilenet_v3_large_100"),
    ({"name": "mnasnet", "width": 0.5}, "mnasnet_050"),
    ({"name": "ghostnet", "width": 0.5}, "ghostnet_050"),
]


def random_value(generator, name, shape):
    """Return values of the size that trained networks have, so that signals neither vanish nor explode."""
    if name.endswith("weight"):
        return generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    if name.endswith(("gamma", "moving_variance")):
        return generator.uniform(0.5, 1.5, shape)
    return generator.normal(0, 0.2, shape)


def epsilons(network):
    return {cell.eps for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d)}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda value: value if isinstance(value, str) else "")
def test_logits_agree_with_mindcv(ours, theirs):
    config = make_config({"model": ours, "data": {"mean": [0.0] * 3, "std": [1.0] * 3}})
    network = create_model(config.model, config.data, 10).set_train(False)
    peer = mindcv.create_model(theirs, num_classes=10).set_train(False)
    (epsilon,), (peer_epsilon,) = epsilons(network), epsilons(peer)

    # Both define their layers in the order of the paper, so their parameters are in the same order. `set_data` checks
    # the shapes.
    peers = list(peer.get_parameters())
    parameters = list(network.get_parameters())
    if len(parameters) == len(peers) + 1:
        parameters.pop().set_data(ms.Tensor(np.zeros(10, np.float32)))  # mindcv's ShuffleNets have no classifier bias
    assert len(parameters) == len(peers)
    generator = np.random.default_rng(0)
    for parameter, partner in zip(parameters, peers):
        assert parameter.name.split(".")[-1] == partner.name.split(".")[-1]
        value = random_value(generator, parameter.name, partner.shape).astype(np.float32)
        partner.set_data(ms.Tensor(value))
        # If the epsilons differ, the variance compensates: only the sum of both matters.
        offset = np.float32(peer_epsilon - epsilon) if parameter.name.endswith("moving_variance") else 0
        parameter.set_data(ms.Tensor(value + offset))

    if "shufflenet_v1" in theirs:
        for unit in peer.features:
            if unit.stride == 2:  # "same" also excludes the padding from the average
                unit.branch_proj = nn.AvgPool2d(3, 2, pad_mode="pad", padding=1)

    side = 225 if "shufflenet" in theirs or "v3" in theirs else 224
    images = generator.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    pixels = network.preprocess(ms.Tensor(images))
    np.testing.assert_allclose(pixels.asnumpy(), (images / 255).transpose(0, 3, 1, 2), atol=1e-6)
    # Both get the same pixels, because GhostNet with these weights amplifies a pixel's last bit to 1e-3.
    expected = peer(pixels).asnumpy()
    logits = network(ms.Tensor(images)).asnumpy()
    assert abs(expected[0] - expected[1]).max() > 1e-2  # the logits depend on the input
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, abs(expected).max()))


def test_mindcv_network_becomes_an_image_classifier():
    config = make_config({"model": {"name": "mindcv/mobilenet_v1_025"}, "data": {"image_size": 64, "channels": 1}})
    network = create_model(config.model, config.data, 7).set_train(False)
    assert network(ms.Tensor(np.zeros((2, 64, 64, 1), np.uint8))).shape == (2, 7)
