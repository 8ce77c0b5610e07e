"""The bytes of the plan: 4 per element of a feature map where it is float32, 2 where mixed precision makes it half."""

import pytest

from src.config.load import make_config
from src.cost.count import profile
from src.cost.devices import Device
from src.cost.plan import element_bytes, per_image
from src.models import create_model


@pytest.mark.parametrize(
    ("precision", "norm_precision", "convolution", "norm", "head"),
    [
        ("float32", "auto", 4, 4, 4),
        ("float16", "auto", 2, 2, 4),
        ("float16", "float32", 2, 4, 4),
        ("bfloat16", "auto", 2, 4, 4),
    ],
)
def test_bytes_of_each_kind_of_operation(precision, norm_precision, convolution, norm, head):
    config = make_config(
        {
            "model": {"name": "mobilenet_v1", "width": 0.25},
            "data": {"image_size": 32},
            "runtime": {"precision": precision, "norm_precision": norm_precision},
        }
    )
    classifier = create_model(config.model, config.data, 10)
    rows = {row.name: row for row in profile(classifier, 32, 3)}
    found = [rows[name] for name in ("backbone.stem.conv", "backbone.stem.norm", "head")]
    assert [element_bytes(row, config.runtime) for row in found] == [convolution, norm, head]
    # MobileNetV1 0.25x at 32 pixels. The side of the feature maps, and the channels, of its 13 blocks: each has a
    # depthwise and a 1x1 convolution, each with BatchNorm and ReLU. The head maps 256 features to 10 classes.
    outputs, channels = [(16, 8)], 8
    for out, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)):
        side = outputs[-1][0] // stride
        outputs += [(side, channels), (side, out)]
        channels = out
    maps = sum(side * side * count for side, count in outputs)
    kept = maps * (convolution + norm + convolution) + 256 * convolution + 10 * head
    assert per_image(config, classifier, Device(1, 1, 1)).kept == kept
