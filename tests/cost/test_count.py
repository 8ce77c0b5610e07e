import csv
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from src.cost.count import BYTES, by_block, count_macs, count_params, guidelines, profile
from src.cost.guidelines import BLOCKS, benchmarks, stacked_macs
from src.cost.zoo import read_zoo
from src.models import NETWORKS, layers
from src.models.classifier import Classifier
from src.models.declaration import Operation
from tests.conftest import ROOT
from tests.cost.test_zoo import SMALLEST, ZOO, build

POOLS = (nn.MaxPool2d, nn.AvgPool2d)
REFERENCE = {(row["model"], float(row["width"]), row["groups"]): (int(row["params"]), int(row["macs"])) for row in ZOO}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("size", "stem_stride"), [(97, 2), (34, 1)])
def test_feature_map_sizes_follow_the_convolution_formula(name, size, stem_stride):
    network = build(name, classes=7, width=SMALLEST[name], stem_stride=stem_stride)
    cells = dict(network.cells_and_names())
    rows = [row for row in profile(network, size, 3) if isinstance(cells.get(row.name), (nn.Conv2d, *POOLS))]
    assert len(rows) > 20
    for row in rows:
        cell = cells[row.name]
        # The networks pad by half the kernel, which keeps the size at stride 1.
        sizes = zip(row.input[1:], pair(cell.kernel_size)[-2:], pair(cell.stride)[-2:])
        assert row.output[1:] == tuple((n + 2 * (k // 2) - k) // s + 1 for n, k, s in sizes), row.name


@pytest.mark.parametrize("name", SMALLEST)
def test_sums_of_rows_equal_the_reference(name):
    width = 1.0 if name.startswith("mobilenet_v3") else SMALLEST[name]
    network = build(name, width=width)
    rows = profile(network, 224, 3)
    params, macs = REFERENCE[name, width, "3" if name == "shufflenet_v1" else ""]
    assert (sum(row.params for row in rows), sum(row.macs for row in rows)) == (params, macs)
    blocks = by_block(network, rows)
    assert (sum(block["params"] for block in blocks), sum(block["macs"] for block in blocks)) == (params, macs)
    assert sum(block["bytes"] for block in blocks) == sum(row.accesses for row in rows) * BYTES


def elements(*tensors):
    """Return the total number of elements of tensors and of tuples of tensors."""
    return sum(elements(*each) if isinstance(each, tuple) else each.size for each in tensors)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in NETWORKS),
        ("shufflenet_v1", {"groups": 1}),
        ("shufflenet_v2", {"layout": "equal_split"}),
    ],
)
def test_operations_are_counted_as_the_network_calls_them(monkeypatch, name, settings):
    network = build(name, classes=7, width=SMALLEST[name], **settings).set_train(False)
    expected = {}
    for row in profile(network, 65, 3):
        if row.name.endswith("." + row.type.lower()):
            expected.setdefault(row.type, []).append(row.accesses)

    called = {}

    def watch(owner, attribute, kind, reads):
        original = getattr(owner, attribute)

        def watched(*arguments):
            result = original(*arguments)
            read = reads(*arguments)
            if read is not None:
                called.setdefault(kind, []).append(read + elements(result))
            return result

        monkeypatch.setattr(owner, attribute, watched)

    ms.set_context(mode=ms.PYNATIVE_MODE)
    pixels = ms.Tensor(np.zeros((1, 3, 65, 65), np.float32))
    watch(ops, "concat", "Concat", lambda maps, axis: elements(*maps))
    watch(ops, "split", "Split", lambda x, *_: x.size)
    watch(ops, "relu", "ReLU", lambda x: x.size)
    watch(ops, "mean", "Mean", lambda x, *_: x.size)
    watch(ops, "transpose", "Shuffle", lambda x, _: x.size)
    watch(ms.Tensor, "__add__", "Add", lambda x, y: elements(x, y))
    watch(ms.Tensor, "__mul__", "Mul", lambda x, y: elements(x, y))
    network.classify(pixels)
    ms.set_context(mode=ms.GRAPH_MODE)
    assert {kind: sorted(counts) for kind, counts in called.items()} == {
        kind: sorted(counts) for kind, counts in expected.items()
    }


def test_memory_access_of_layers_equals_hand_calculation():
    rows = {row.name: row for row in profile(build("mobilenet_v1", classes=10, width=0.25), 32, 3)}
    assert rows["backbone.stem.conv"].accesses == 3 * 32 * 32 + 8 * 16 * 16 + 8 * 3 * 9
    assert rows["backbone.stem.norm"].accesses == 2 * 8 * 16 * 16 + 4 * 8
    assert rows["backbone.stem.act"].accesses == 2 * 8 * 16 * 16
    assert rows["backbone.layers.0.conv"].accesses == 2 * 8 * 16 * 16 + 8 * 9
    assert rows["backbone.layers.1.conv"].accesses == (8 + 16) * 16 * 16 + 8 * 16
    assert rows["backbone.global_pool.mean"].accesses == 256 * 1 * 1 + 256
    assert rows["head"].accesses == 256 + 10 + 256 * 10 + 10
    kinds = [rows[f"backbone.{name}"].kind for name in ("stem.conv", "layers.0.conv", "layers.1.norm", "layers.1.act")]
    assert kinds == ["convolution", "depthwise", "batch_norm", "element-wise"]


def test_squeeze_excite_reads_feature_map_and_gate():
    cell = layers.SqueezeExcite(16, 4)
    network = Classifier(nn.SequentialCell(nn.Conv2d(3, 16, 1), cell), None, 0.0, [0.5] * 3, [0.5] * 3)
    rows = {row.type: row for row in profile(network, 6, 3)}
    assert rows["Mul"].accesses == 2 * 16 * 36 + 16
    assert rows["Mean"].accesses == 16 * 36 + 16


class HalvesSum(nn.Cell):
    """Adds the first half of the channels to the second half."""

    def construct(self, x):
        half = x.shape[1] // 2
        return x[:, :half] + x[:, half:]

    def operations(self, x, y):
        return [Operation("Add", "element-wise", x, y, math.prod(x) + math.prod(y))]


def test_operations_of_a_new_cell_are_counted():
    network = Classifier(nn.SequentialCell(nn.Conv2d(3, 16, 1), HalvesSum()), None, 0.0, [0.5] * 3, [0.5] * 3)
    convolution, addition = profile(network, 6, 3)
    assert convolution.name == "backbone.0"
    assert (addition.name, addition.type, addition.kind) == ("backbone.1.add", "Add", "element-wise")
    assert (addition.input, addition.output) == ((16, 6, 6), (8, 6, 6))
    # 16 x 36 elements are read and 8 x 36 written; a float32 has 4 bytes.
    assert (addition.params, addition.macs, addition.accesses) == (0, 0, 864)
    assert addition.to_dict()["bytes"] == 3456


def of_benchmark(guideline, line):
    row = benchmarks(64)[guideline][line]
    channels = row.channels
    network = Classifier(row.network, None, 0.0, [0.5] * channels, [0.5] * channels)
    return guidelines(network, profile(network, 14, channels))


# ShuffleNetV2: channels from tables 1 and 2 (ARM, x1), Eq. 1 and 2 for feature maps of 14x14.
@pytest.mark.parametrize(("line", "c1", "c2"), [(0, 32, 32), (1, 22, 44), (2, 13, 78), (3, 9, 108)])
def test_first_guideline_on_the_paper_s_networks(line, c1, c2):
    found = of_benchmark("G1", line)
    access, macs = 14 * 14 * (c1 + c2) + c1 * c2, 14 * 14 * c1 * c2
    assert found["memory_access"] == 20 * access
    assert found["balance"] == pytest.approx(c2 / c1)
    assert found["access_to_bound"] == pytest.approx(access / (2 * math.sqrt(14 * 14 * macs) + macs / (14 * 14)))
    assert (found["access_to_bound"] == pytest.approx(1)) == (c1 == c2)
    assert (found["grouped_macs"], found["group_counts"]) == (0, {1: 20})


@pytest.mark.parametrize(("line", "groups", "c"), [(0, 1, 64), (1, 2, 90), (2, 4, 128)])
def test_second_guideline_on_the_paper_s_networks(line, groups, c):
    found = of_benchmark("G2", line)
    assert found["memory_access"] == 10 * (14 * 14 * 2 * c + c * c // groups)
    assert (found["grouped_macs"], found["group_counts"]) == (float(groups > 1), {groups: 10})


@pytest.mark.parametrize("guideline", ["G1", "G2", "G3", "G4"])
def test_benchmarks_of_a_guideline_have_about_the_same_macs(guideline):
    counts = [stacked_macs(row.network, 56) for row in benchmarks(64)[guideline]]
    assert max(counts) / min(counts) < 1.06
    macs_per_pixel = {"G1": 2 * 32 * 32, "G2": 64 * 64, "G3": 64 * 64, "G4": 2 * 64 * 16 + 9 * 16 * 16}[guideline]
    assert counts[0] == BLOCKS * 56 * 56 * macs_per_pixel


# The numbers of convolutions in all blocks and of blocks, counted in the papers' figures and tables.
@pytest.mark.parametrize(
    ("name", "kernels", "units"),
    [
        ("shufflenet_v1", 3 * 16, 16),
        ("shufflenet_v2", 13 * 3 + 3 * 5, 16),
        ("mobilenet_v1", 2 * 13, 13),
        ("mobilenet_v2", 16 * 3 + 2, 17),
        ("mnasnet", 16 * 3 + 2, 17),
    ],
)
def test_third_guideline(name, kernels, units):
    network = build(name, width=SMALLEST[name])
    assert guidelines(network, profile(network, 32, 3))["kernels_mean"] == pytest.approx(kernels / units)


@pytest.mark.parametrize("name", ["shufflenet_v1", "mobilenet_v3_small"])
def test_shares_of_memory_access(name):
    network = build(name, width=SMALLEST[name])
    rows = profile(network, 64, 3)
    shares = guidelines(network, rows)["access_shares"]
    assert sum(shares.values()) == pytest.approx(1)
    activations = [row for row in rows if row.type in ("ReLU", "ReLU6", "HSwish", "HSigmoid")]
    others = [row for row in rows if row.type in ("Add", "Mul", "Concat", "Split", "Shuffle")]
    touched = sum(row.accesses for row in activations + others) / sum(row.accesses for row in rows)
    assert shares["element-wise"] == pytest.approx(touched)


def test_zoo_has_the_reference_and_mobilenet_v3_at_075():
    with open(ROOT / "src" / "cost" / "zoo.csv", newline="") as file:
        table = list(csv.DictReader(file))
    with open(ROOT / "tests" / "reference" / "zoo.csv", newline="") as file:
        reference = list(csv.DictReader(file))
    assert [row for row in table if row in reference] == reference
    added = [row for row in table if row not in reference]
    assert [(row["model"], row["width"]) for row in added] == [
        ("mobilenet_v3_small", "0.75"),
        ("mobilenet_v3_large", "0.75"),
    ]
    for row in added:
        network = build(row["model"], width=0.75)
        assert (count_params(network), count_macs(network, 224, 3)) == (int(row["params"]), int(row["macs"]))
    assert {(row["model"], row["width"]) for row in read_zoo()} == {
        (name, width) for name, network in NETWORKS.items() for width in network.variants
    }
