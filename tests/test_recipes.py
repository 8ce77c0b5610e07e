"""Every shipped config builds its network, schedule, optimizer and augmentation, and trains for one step."""

import math
import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.config.load import load_config
from src.data.loading import train_loader
from src.data.samples import Samples
from src.models import create_model
from src.training.optimizer import create_optimizer
from src.training.schedule import learning_rates
from src.training.step import TrainStep
from tests.conftest import ROOT

IMAGENET = sorted((ROOT / "configs").glob("*/imagenet.yaml"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
BATCH = 4


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_config_trains_a_step_on_generated_images(path):
    config = load_config(path, ["runtime.mode=pynative", f"train.batch_size={BATCH}", "data.workers=1"])
    classes = 1000 if config.data.name == "imagenet" else 10
    generator = np.random.default_rng(0)
    side, channels = config.data.image_size, config.data.channels
    images = generator.integers(0, 256, (2 * BATCH, side, side, channels), dtype=np.uint8)
    labels = generator.integers(0, classes, 2 * BATCH).astype(np.int32)
    samples = Samples(images, labels, [str(i) for i in range(classes)])
    size = (config.train.image_sizes or [side])[0]
    images, labels = next(iter(train_loader(config, samples, image_size=size).epoch(1)))
    assert (images.shape, images.dtype) == ((BATCH, size, size, channels), np.uint8)

    classifier = create_model(config.model, config.data, classes).set_train(True)
    before = {parameter.name: parameter.asnumpy().copy() for parameter in classifier.trainable_params()}
    step = TrainStep(classifier, create_optimizer(config, classifier), config)
    # The step gets a crop of the images and a shallow network: a step of the whole network takes long and tests nothing
    # more.
    images = np.ascontiguousarray(images[:, :32, :32])
    step.begin(np.full(1, config.optimizer.lr, np.float32))
    for _ in range(step.accumulate):
        step(ms.Tensor(images), ms.Tensor(labels))
    ((loss, hits), *_) = step.results()
    assert 0 <= hits <= BATCH
    assert math.log(classes) / 2 < loss < 3 * math.log(classes)
    changed = [name for name, old in before.items() if (classifier.parameters_dict()[name].asnumpy() != old).any()]
    assert len(changed) > 0.9 * len(before)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_schedule_of_config_reaches_the_peak_and_falls(path):
    config = load_config(path)
    # The learning rates of the ImageNet recipes belong to eight devices.
    ranks = 8 if config.data.name == "imagenet" else 1
    rates = learning_rates(config, 10, ranks)
    assert len(rates) == config.train.epochs * 10
    assert rates.max() == np.float32(config.optimizer.lr)
    assert 0 < rates.min() <= rates[-1] < 0.1 * rates.max()
    if config.optimizer.lr_batch:
        assert config.train.batch_size * ranks == config.optimizer.lr_batch


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.parent.name)
def test_every_accuracy_in_a_recipe_has_a_source(path):
    head = path.read_text().split("\nmodel:")[0].replace("\n#", " ")
    figures = re.findall(r"\d\d\.\d+ % .*?(?=\d\d\.\d+ % |$)", head)
    assert figures
    assert all(re.search(r"\(https://|\(the paper, table", figure) for figure in figures)


def test_moving_statistics_of_mnasnet_are_torchvisions():
    """torchvision/models/mnasnet.py: `_BN_MOMENTUM = 1 - 0.9997`, in PyTorch's terms, and no recalibration."""
    config = load_config(ROOT / "configs" / "mnasnet" / "imagenet.yaml")
    classifier = create_model(config.model, config.data, 2)
    norms = [cell for _, cell in classifier.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    norms[0].set_train(True)(ms.Tensor(np.float32(np.arange(8).reshape(2, 1, 2, 2).repeat(norms[0].num_features, 1))))
    assert norms[0].moving_mean.asnumpy() == pytest.approx(0.0003 * 3.5, rel=1e-4)
    assert {norm.momentum for norm in norms} == {norms[0].momentum}
    assert config.train.recalibrate == 0
