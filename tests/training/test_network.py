"""The order of the steps that prepare a network for training."""

import mindspore as ms
from mindspore import nn

from src.config.load import make_config
from src.models.layers import ConvNormAct
from src.runtime.parallel import Ranks, SyncNorm, synchronise_norms
from src.runtime.precision import keep_norms_in_float32
from src.training.network import prepare_network


def precision_of(cell):
    """Return the precisions that a Cell is marked with, such as ["fp32"]."""
    return [name for name in ("fp16", "fp32", "bf16") if cell.get_flags()[name]]


class SecondRank(Ranks):
    """A rank of two that exchanges nothing, because the other process does not exist."""

    def broadcast(self, parameters):
        pass


def test_synchronised_norms_are_kept_in_float32():
    network = ConvNormAct(3, 4, 3)
    synchronise_norms(network, 2)
    network.to_float(ms.float16)
    keep_norms_in_float32(network)
    assert isinstance(network.norm, SyncNorm)
    assert (precision_of(network.norm), precision_of(network.conv)) == (["fp32"], ["fp16"])


def test_all_norms_of_a_network_are_kept_in_float32():
    network = nn.SequentialCell(nn.Dense(4, 4), nn.LayerNorm((4,)), nn.BatchNorm1d(4)).to_float(ms.float16)
    keep_norms_in_float32(network)
    assert [precision_of(cell) for cell in network] == [["fp16"], ["fp32"], ["fp32"]]


def test_norms_are_synchronised_before_the_precision_is_set(monkeypatch):
    # The prepared network is not run, so a CPU can prepare it for another device.
    get_context = ms.get_context
    monkeypatch.setattr(ms, "get_context", lambda key: "Ascend" if key == "device_target" else get_context(key))
    runtime = {"sync_norm": True, "precision": "float16", "kernels": "stock"}
    config = make_config({"model": {"width": 0.5}, "train": {"recalibrate": 0}, "runtime": runtime})
    classifier = prepare_network(config, ["a", "b"], None, None, SecondRank(1, 2)).classifier
    cells = [cell for _, cell in classifier.cells_and_names()]
    norms = [cell for cell in cells if isinstance(cell, SyncNorm)]
    convolutions = [cell for cell in cells if isinstance(cell, nn.Conv2d)]
    assert len(norms) == len(convolutions) > 0
    assert not any(isinstance(cell, nn.BatchNorm2d) for cell in cells)
    assert all(precision_of(norm) == ["fp32"] for norm in norms)
    assert all(precision_of(convolution) == ["fp16"] for convolution in convolutions)
