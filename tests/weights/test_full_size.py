"""Compare full-size networks with torchvision and timm, through real `.pth` files. These tests need PyTorch.

tests/reference/write_parity_references.py says how to install it. Without PyTorch, tests/weights/test_pretrained.py
compares narrower networks with stored logits.
"""

import mindspore as ms
import numpy as np
import pytest

from src.config.load import make_config
from src.models import create_model
from src.weights.pretrained import load_pretrained
from tests.reference.random_weights import random_images, random_tensor

torch = pytest.importorskip("torch")
# torchvision's compiled operators are for another version of torch. Its models need only the names of the operators.
LIBRARY = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    LIBRARY.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")
timm, models = pytest.importorskip("timm"), pytest.importorskip("torchvision").models

NETWORKS = [  # our settings, the library, the function that builds its network
    ({"name": "mobilenet_v2"}, "torchvision", models.mobilenet_v2),
    ({"name": "shufflenet_v2", "layout": "equal_split"}, "torchvision", models.shufflenet_v2_x1_0),
    ({"name": "mnasnet"}, "torchvision", models.mnasnet1_0),
    ({"name": "mobilenet_v3_small"}, "torchvision", models.mobilenet_v3_small),
    ({"name": "mobilenet_v3_large"}, "torchvision", models.mobilenet_v3_large),
    ({"name": "ghostnet"}, "timm", lambda: timm.create_model("ghostnet_100")),
    ({"name": "mobilenet_v2"}, "timm", lambda: timm.create_model("mobilenetv2_100")),
    ({"name": "mobilenet_v3_small"}, "timm", lambda: timm.create_model("mobilenetv3_small_100")),
    ({"name": "mobilenet_v3_large"}, "timm", lambda: timm.create_model("mobilenetv3_large_100")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "source", "make"), NETWORKS, ids=lambda value: str(value))
def test_logits_equal_the_logits_of_the_library(settings, source, make, tmp_path):
    peer = make().eval()
    images = random_images()
    with torch.no_grad():
        for key, tensor in peer.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.tensor(random_tensor(key, tensor.shape)))
        expected = peer(torch.tensor((images / 255).transpose(0, 3, 1, 2).astype(np.float32))).numpy()
    torch.save(peer.state_dict(), tmp_path / "weights.pth")

    config = make_config({"model": settings, "data": {"mean": [0.0] * 3, "std": [1.0] * 3}})
    classifier = create_model(config.model, config.data, 1000)
    assert load_pretrained(classifier, config.model, tmp_path / "weights.pth")[:2] == (source, False)
    logits = classifier.set_train(False)(ms.Tensor(images)).asnumpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, abs(expected).max()))
