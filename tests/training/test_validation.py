"""The evaluation at the end of an epoch: which images recalibrate BatchNorm, and what a signal or a NaN does."""

import signal
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from src.config.load import make_config
from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.errors import Interrupted
from src.evaluation.evaluate import Evaluation
from src.models import create_model
from src.runs.progress import Clock
from src.runs.state import RunState
from src.runtime.parallel import Ranks
from src.training.interrupts import Interrupts
from src.training.moving_average import MovingAverage
from src.training.trainer import DivergedError, Trainer
from src.training.validation import Validation

BATCH = 8


@pytest.fixture
def signals():
    """Restore the handlers of signals after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def shades(tmp_path):
    """An image folder of four classes with 12 images each, which are black, dark gray, light gray and white."""
    for split, count in (("train", 12), ("val", 2)):
        for shade in (0, 85, 170, 255):
            folder = tmp_path / split / f"{shade:03}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (16, 16), (shade, shade, shade)).save(folder / f"{i}.png")
    return tmp_path


def validation_of(root, ranks=None, average=False, **train):
    """Return the config, the network and its `Validation` for an image folder."""
    data = {"name": "image_folder", "root": str(root), "image_size": 16, "crop_fraction": 1.0, "workers": 1}
    config = make_config(
        {
            "model": {"name": "mobilenet_v1", "width": 0.25, "stem_stride": 1},
            "data": {**data, "on_bad_image": "skip"},
            "train": {"batch_size": BATCH, **train},
            "runtime": {"mode": "pynative"},
        }
    )
    train_samples, test_samples = (load_samples(config.data, split) for split in ("train", "eval"))
    classifier = create_model(config.model, config.data, 4)
    batches = eval_loader(config, test_samples)
    kept = MovingAverage(classifier, 0.9) if average else None
    validation = Validation(config, classifier, train_samples, batches, ranks or Ranks(), kept)
    return config, classifier, validation


def test_recalibration_sees_all_classes_of_a_sorted_folder(shades):
    _, _, validation = validation_of(shades, recalibrate=2)
    recalibration = validation.recalibration
    first, second, *_ = list(recalibration.loader.epoch())
    assert set(np.concatenate([first[1], second[1]])) == {0, 1, 2, 3}
    again = next(iter(recalibration.loader.epoch()))
    assert (again[0] == first[0]).all()


def test_ranks_recalibrate_with_different_images_and_equally_many_batches(shades):
    parts = []
    for rank in range(2):
        _, _, validation = validation_of(shades, Ranks(rank, 2), recalibrate=9)
        loader = validation.recalibration.loader
        parts.append(loader.order(0))
        assert [len(images) for images, _ in loader.epoch()] == [BATCH] * 3
    assert len(set(np.concatenate(parts))) == 48


def test_recalibration_replaces_bad_images(shades):
    for path in sorted(shades.glob("train/*/*.png"))[::2]:
        path.write_bytes(b"no image")
    _, classifier, validation = validation_of(shades, recalibrate=9)
    with validation.recalibration.in_place(lambda: None):
        statistics = [value.asnumpy() for name, value in classifier.parameters_dict().items() if "moving" in name]
    assert all(np.isfinite(value).all() for value in statistics)
    assert (statistics[0] != 0).any()


class SignalAt(Interrupts):
    """Interrupts whose process gets SIGTERM just before a call of `poll`, counted from 0."""

    def __init__(self, call):
        super().__init__()
        self.calls_before = call

    def poll(self):
        if self.calls_before == 0:
            signal.raise_signal(signal.SIGTERM)
        self.calls_before -= 1
        super().poll()


# Without the average: two batches of recalibration, one of test images. With it, the raw weights are evaluated before.
@pytest.mark.parametrize(("average", "batch"), [(False, 0), (False, 1), (False, 2), *((True, i) for i in range(4))])
def test_a_signal_during_the_evaluation_saves_what_the_training_has(shades, signals, average, batch):
    config, classifier, validation = validation_of(shades, average=average, recalibrate=2)

    def weights():
        return {name: value.asnumpy().copy() for name, value in classifier.parameters_dict().items()}

    before, saved = weights(), []
    if average:
        validation.average.load({name: ms.Tensor(value + 1) for name, value in before.items()})
    folder = SimpleNamespace(path="run")
    trainer = Trainer(config, folder, Ranks(), SignalAt(batch), [], classifier, None, validation.average)
    trainer.save = lambda: saved.append(weights())
    with pytest.raises(KeyboardInterrupt):
        trainer.end_epoch(validation, np.float32([0.1]), Clock())
    with pytest.raises(Interrupted):
        trainer.leave()
    assert len(saved) == 1
    assert all((saved[0][name] == value).all() for name, value in before.items())


def test_a_second_signal_during_the_evaluation_saves_nothing(shades, signals):
    def interrupted_twice(poll):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    trainer = Trainer(make_config({}), SimpleNamespace(path="run"), Ranks(), Interrupts(), [], None, None)
    trainer.save = lambda: pytest.fail("the state was saved")
    with pytest.raises(KeyboardInterrupt):
        trainer.end_epoch(interrupted_twice, np.float32([0.1]), Clock())
    with pytest.raises(Interrupted):
        trainer.leave()


@pytest.mark.parametrize("column", ["test_loss", "average_loss"])
@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_test_loss_that_is_not_finite_is_a_divergence(signals, column, loss):
    trainer = Trainer(make_config({}), None, Ranks(), Interrupts(), [], None, None)
    result = Evaluation(loss, 0.0, 0.0, 1, np.zeros((2, 2), np.int64), None)
    with pytest.raises(DivergedError, match=rf"{column} became (nan|inf) after epoch 1, at learning rate 0.1"):
        trainer.end_epoch(lambda poll: (result, {}, {"test_loss": 0.5, column: loss}), np.float32([0.1]), Clock())
    assert trainer.state == RunState()


@pytest.mark.parametrize("metric", ["loss", "top1", "top5"])
def test_an_epoch_with_nan_never_ranks_best(metric):
    state = RunState()
    for epoch, (loss, accuracy) in enumerate([(np.nan, 1.0), (2.0, 0.1), (1.0, 0.5)], 1):
        state.rank({"epoch": epoch, "loss": loss, "top1": accuracy, "top5": accuracy}, metric, 3)
    assert [row["epoch"] for row in state.ranking] == [3, 2, 1]
