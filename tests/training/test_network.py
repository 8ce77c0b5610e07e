"""The order of the steps that prepare a network for training."""

import mindspore as ms
import numpy as np
from mindspore import nn

from src.config.load import make_config
from src.models.layers import ConvNormAct
from src.runtime.parallel import Ranks, SyncNorm, synchronise_norms
from src.training.network import prepare_network


def precision_of(cell):
    """Return the precisions that a Cell is marked with, such as ["fp32"]."""
    return [name for name in ("fp16", "fp32", "bf16") if cell.get_flags().get(name)]


class SecondRank(Ranks):
    """A rank of two that exchanges nothing, because the other process does not exist."""

    def broadcast(self, parameters):
        pass

    def sharing(self):
        return 1


def test_synchronised_norms_keep_each_name_with_its_parameter():
    network = ConvNormAct(3, 4, 3)
    before = {parameter.name: parameter for parameter in network.get_parameters()}
    synchronise_norms(network, 2)
    assert isinstance(network.norm, SyncNorm)
    after = {parameter.name: parameter for parameter in network.get_parameters()}
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_statistics_of_synchronised_norms_do_not_overflow_in_float16():
    """The sum of these images is 401,408; the largest float16 is 65,504."""
    norm = SyncNorm(nn.BatchNorm2d(1, momentum=0.0), 1).set_train(True)
    norm.total = nn.Identity()  # a single rank
    images = np.full((64, 1, 112, 112), 0.5, np.float16)
    images[::2] = 0.25
    outputs = norm(ms.Tensor(images))
    assert outputs.dtype == ms.float16
    np.testing.assert_allclose(norm.moving_mean.asnumpy(), images.mean(dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(norm.moving_variance.asnumpy(), images.var(dtype=np.float64), rtol=1e-4)
    expected = (images - 0.375) / np.sqrt(images.var(dtype=np.float64) + norm.eps)
    np.testing.assert_allclose(outputs.asnumpy(), expected, rtol=2e-3)


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
    # They take and return feature maps of 2-byte numbers, and cast the sums themselves.
    assert all(precision_of(norm) == [] for norm in norms)
    assert all(precision_of(convolution) == ["fp16"] for convolution in convolutions)
