"""Our networks against mindcv, an independent implementation: imported random weights give the same logits.

mindcv pads some layers of the ShuffleNets and of MobileNetV3 as TensorFlow does ("same"). This differs from the
authors' padding if a feature map's side is even. With 225 pixels, all inputs of layers with stride 2 have odd sides;
with 224 pixels, they have even sides.
"""

import mindcv
import mindspore as ms
import numpy as np
import pytest

from src.config.load import make_config
from src.models import create_model
from src.weights.pretrained import load_pretrained

PAIRS = [  # ours, mindcv's name
    ({"name": "shufflenet_v1", "width": 0.5, "groups": 3}, "shufflenet_v1_g3_05"),
    ({"name": "shufflenet_v1", "width": 0.5, "groups": 8}, "shufflenet_v1_g8_05"),
    ({"name": "shufflenet_v2", "width": 0.5}, "shufflenet_v2_x0_5"),
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


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda value: value if isinstance(value, str) else "")
def test_logits_agree_with_mindcv(ours, theirs, tmp_path):
    peer = mindcv.create_model(theirs, num_classes=10).set_train(False)
    generator = np.random.default_rng(0)
    for parameter in peer.get_parameters():
        parameter.set_data(ms.Tensor(random_value(generator, parameter.name, parameter.shape).astype(np.float32)))
    ms.save_checkpoint(peer, str(tmp_path / "peer.ckpt"))

    config = make_config({"model": ours, "data": {"mean": [0.0] * 3, "std": [1.0] * 3}})
    network = create_model(config.model, config.data, 10).set_train(False)
    imported = load_pretrained(network, config.model, tmp_path / "peer.ckpt")
    assert imported[:2] == ("mindcv", False)
    assert imported.padding == ("same" if "shufflenet" in theirs or "v3" in theirs else None)

    for side in (224, 225):
        images = generator.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
        pixels = network.preprocess(ms.Tensor(images))
        np.testing.assert_allclose(pixels.asnumpy(), (images / 255).transpose(0, 3, 1, 2), atol=1e-6)
        # Both get the same pixels, because GhostNet with these weights amplifies a pixel's last bit to 1e-3.
        expected = peer(pixels).asnumpy()
        assert abs(expected[0] - expected[1]).max() > 1e-2  # the logits depend on the input
        logits = network.classify(pixels).asnumpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_mindcv_network_becomes_an_image_classifier():
    config = make_config({"model": {"name": "mindcv/mobilenet_v1_025"}, "data": {"image_size": 64, "channels": 1}})
    network = create_model(config.model, config.data, 7).set_train(False)
    assert network(ms.Tensor(np.zeros((2, 64, 64, 1), np.uint8))).shape == (2, 7)
