import csv

import mindspore as ms
import numpy as np
import pytest

from src.config.load import make_config
from src.cost.count import count_macs, count_params
from src.models import NETWORKS, create_model
from tests.conftest import ROOT

with open(ROOT / "tests" / "reference" / "zoo.csv", newline="") as file:
    ZOO = [row for row in csv.DictReader(file) if row["model"] in NETWORKS]


def build(name, classes=1000, channels=3, **settings):
    config = make_config({"model": {"name": name, **settings}, "data": {"channels": channels}})
    return create_model(config.model, config.data, classes)


@pytest.mark.parametrize("row", ZOO, ids=lambda row: f"{row['model']}-{row['width']}-{row['groups']}")
def test_parameters_and_macs_equal_the_reference(row):
    groups = {"groups": int(row["groups"])} if row["groups"] else {}
    network = build(row["model"], width=float(row["width"]), **groups)
    assert count_params(network) == int(row["params"])
    assert count_macs(network, 224, 3) == int(row["macs"])


def test_every_width_of_every_network_is_in_the_reference():
    known = {(row["model"], float(row["width"])) for row in ZOO} | set(MOBILENET_V3_075)
    assert known == {(name, width) for name, network in NETWORKS.items() for width in network.variants}


# MobileNetV3, tables 3 and 4: million MACs of the 0.75x networks, which the reference table lacks.
MOBILENET_V3_075 = {("mobilenet_v3_large", 0.75): 155, ("mobilenet_v3_small", 0.75): 44}


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
def test_mobilenet_v3_075_costs_what_the_paper_says(name):
    network = build(name, width=0.75)
    assert count_macs(network, 224, 3) / 1e6 == pytest.approx(MOBILENET_V3_075[name, 0.75], rel=0.015)
    # The width multiplier does not shrink the last layer.
    assert network.head.weight.shape == build(name).head.weight.shape


# From the reference table's note on ShuffleNetV2. At 0.5x both layouts have the same size.
EQUAL_SPLIT = {
    0.5: (1366792, 40476448),
    1.0: (2278604, 144907992),
    1.5: (3503624, 295759392),
    2.0: (7393996, 583253464),
}


@pytest.mark.parametrize("width", EQUAL_SPLIT)
def test_equal_split_layout_equals_the_reference(width):
    network = build("shufflenet_v2", width=width, layout="equal_split")
    assert (count_params(network), count_macs(network, 224, 3)) == EQUAL_SPLIT[width]


# ShuffleNetV1, table 1: complexity in million MACs at 1.0x.
@pytest.mark.parametrize(("groups", "mflops"), [(1, 143), (2, 140), (3, 137), (4, 133), (8, 137)])
def test_shufflenet_v1_groups_cost_what_the_paper_says(groups, mflops):
    macs = count_macs(build("shufflenet_v1", groups=groups), 224, 3)
    assert macs / 1e6 == pytest.approx(mflops, rel=0.011)


@pytest.mark.parametrize("width", [0.5, 1.5, 2.0])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_shufflenet_v1_widths_build_with_every_group_count(width, groups):
    build("shufflenet_v1", width=width, groups=groups)


SMALLEST = {name: min(network.variants) for name, network in NETWORKS.items()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("size", "channels", "stem_stride"), [(65, 3, 2), (33, 1, 1)])
def test_any_size_channels_and_classes(name, size, channels, stem_stride):
    network = build(name, classes=7, channels=channels, width=SMALLEST[name], stem_stride=stem_stride).set_train(False)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, size, size + 6, channels), dtype=np.uint8)
    logits = network(ms.Tensor(images)).asnumpy()
    assert logits.shape == (2, 7)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


# The total stride, from the last feature map's size for a large image: it shows the stride of the stem.
@pytest.mark.parametrize(
    ("name", "stem_stride", "side"),
    [(name, stem_stride, 128 // stride) for name, strides in {
        "shufflenet_v1": {2: 32, 1: 8},
        "shufflenet_v2": {2: 32, 1: 8},
        "mobilenet_v2": {2: 32, 1: 16},
        "ghostnet": {2: 32, 1: 16},
        "mobilenet_v1": {2: 32, 1: 16},
        "mobilenet_v3_small": {2: 32, 1: 16},
        "mobilenet_v3_large": {2: 32, 1: 16},
        "mnasnet": {2: 32, 1: 16},
    }.items() for stem_stride, stride in strides.items()],
)  # fmt: skip
def test_total_stride(name, stem_stride, side):
    network = build(name, classes=2, width=SMALLEST[name], stem_stride=stem_stride)
    shapes = []
    backbone = network.backbone
    last = next(getattr(backbone, name) for name in ("units", "blocks", "layers") if hasattr(backbone, name))
    hook = last.register_forward_hook(lambda cell, inputs, output: shapes.append(output.shape))
    network(ms.Tensor(np.zeros((1, 128, 128, 3), np.uint8)))
    hook.remove()
    assert shapes[0][2:] == (side, side)
