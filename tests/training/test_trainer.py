"""The training loop waits for the device only to fetch results, and finds there what each step did."""

import contextlib
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.config.load import make_config
from src.data.loading import Loader
from src.data.samples import Samples
from src.data.transforms import View
from src.models.classifier import Classifier
from src.runs.progress import Clock
from src.runtime.parallel import Ranks
from src.training import step
from src.training.moving_average import DeviceMovingAverage
from src.training.optimizer import create_optimizer
from src.training.step import ROWS, TrainStep
from src.training.trainer import DivergedError, Trainer
from src.training.window import FIRST_STEPS, MOST_STEPS, Window

BATCH, CLASSES = 4, 3
WAITS = ("asnumpy", "item", "tolist", "__float__", "__int__", "__bool__", "__index__")  # of a Tensor


class Shown:
    """A progress bar that keeps what it is given."""

    def __init__(self):
        self.calls = []

    def show(self, step, loss, rate, clock):
        self.calls.append((step, loss))


def trainer_of(overrides=(), steps=20, device_average=False):
    """Return a `Trainer` of a small network with BatchNorm, and a loader with this number of `steps` in an epoch."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (steps * BATCH, 4, 4, 1), np.uint8)
    labels = generator.integers(0, CLASSES, len(images)).astype(np.int32)
    loader = Loader(Samples(images, labels, list("abc")), View([], []), BATCH, 1, seed=0)
    config = make_config({"runtime": {"mode": "pynative"}, "train": {"batch_size": BATCH, "epochs": 2}}, overrides)
    backbone = nn.SequentialCell(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    classifier = Classifier(backbone, nn.Dense(64, CLASSES), config.model.dropout, [0.5], [0.25])
    for parameter in classifier.trainable_params():
        parameter.set_data(ms.Tensor(generator.normal(0, 0.1, parameter.shape).astype(np.float32)))
    train_step = TrainStep(classifier, create_optimizer(config, classifier), config)
    average = DeviceMovingAverage(classifier, 0.9, compiled=False) if device_average else None
    interrupts = SimpleNamespace(hold=lambda: None, release=lambda: None)
    folder = SimpleNamespace(save_state=lambda *positions, **content: None)
    return Trainer(config, folder, Ranks(), interrupts, list("abc"), classifier, train_step, average), loader


@contextlib.contextmanager
def counted(monkeypatch):
    """Count the calls that wait for the device, of Tensors and of collective operators, in the list that it yields."""
    waits = []

    def counting(name, original):
        def call(*arguments, **options):
            waits.append(name)
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for name in WAITS:
            if hasattr(ms.Tensor, name):
                patched.setattr(ms.Tensor, name, counting(name, getattr(ms.Tensor, name)))
        patched.setattr(Ranks, "sum", counting("sum", Ranks.sum))
        yield waits


@pytest.mark.parametrize(
    "overrides",
    [
        ["log.every_steps=50"],
        ["log.every_steps=50", "train.accumulate=2"],
        ["log.every_steps=50", "augment.mixup=0.2", "model.dropout=0.2"],
    ],
)
def test_an_epoch_of_100_steps_waits_for_the_device_at_most_4_times(monkeypatch, overrides):
    trainer, loader = trainer_of(overrides, steps=100, device_average=True)
    rates = np.full(100 // trainer.step.accumulate, 0.01, np.float32)
    shown = Shown()
    with counted(monkeypatch) as waits:
        trainer.train_epoch(loader, rates, shown)
    assert waits == ["asnumpy"] * 3  # after the step that compiles, after 51 steps, and at the end
    assert [step for step, _ in shown.calls] == [1, 51, 100]
    assert trainer.state.images == 100 * BATCH


def test_windows_do_not_change_the_sums(monkeypatch):
    """With a window of one step, the host sums up each loss as the step computes it."""
    sums = []
    for every in (1, 7):
        trainer, loader = trainer_of([f"log.every_steps={every}", "model.dropout=0.2", "augment.mixup=0.3"])
        trainer.train_epoch(loader, np.linspace(0.1, 0.01, 20, dtype=np.float32), Shown())
        weights = {name: value.asnumpy().tobytes() for name, value in trainer.classifier.parameters_dict().items()}
        sums.append((trainer.state.loss_sum, trainer.state.correct, trainer.state.images, weights))
    assert sums[0] == sums[1]


def test_an_epoch_that_continues_after_any_batch_has_the_same_random_numbers(monkeypatch):
    settings = ["log.every_steps=1000", "model.dropout=0.2", "augment.cutmix=0.3"]
    monkeypatch.setattr(step, "DRAWS", 8)  # batches whose random numbers are drawn at once
    whole, loader = trainer_of(settings)
    rates = np.linspace(0.1, 0.01, 20, dtype=np.float32)
    whole.train_epoch(loader, rates, Shown())
    parts, _ = trainer_of(settings)
    for stop in (7, 8, 20):
        first = parts.state.batch
        batches = list(loader.epoch(1, first))[: stop - first]
        part = SimpleNamespace(epoch=lambda *_, batches=batches: iter(batches), batch_size=BATCH)
        parts.train_epoch(part, rates, Shown())
        if parts.window.steps:
            parts.fetch()
        assert parts.state.batch == stop
    assert parts.state.loss_sum == pytest.approx(whole.state.loss_sum, rel=1e-12)
    for old, new in zip(whole.classifier.get_parameters(), parts.classifier.get_parameters()):
        assert old.asnumpy().tobytes() == new.asnumpy().tobytes()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_divergence_within_a_window_names_its_step(accumulate):
    trainer, loader = trainer_of(["log.every_steps=18", f"train.accumulate={accumulate}"])
    rates = np.full(20 // accumulate, 0.01, np.float32)
    rates[12 // accumulate] = np.inf  # the 13th step, or the update after it, spoils the weights
    spoiled = 14 if accumulate == 1 else 15
    with pytest.raises(DivergedError, match=rf"loss became nan in epoch 1, step {spoiled}, at learning rate 0.01;"):
        trainer.train_epoch(loader, rates, Shown())
    assert trainer.state.images == (spoiled - 1) * BATCH


def test_a_state_that_is_saved_within_a_window_has_the_sums_so_far():
    trainer, loader = trainer_of(["log.every_steps=1000", "checkpoint.every_steps=6"])
    saved = []
    trainer.folder.save_state = lambda state, keep, **content: saved.append((state.batch, state.images, state.loss_sum))
    trainer.train_epoch(loader, np.full(20, 0.01, np.float32), Shown())
    assert [(batch, images) for batch, images, _ in saved] == [(6, 24), (12, 48), (18, 72)]
    assert 0 < saved[0][2] < saved[1][2] < saved[2][2] < trainer.state.loss_sum


def test_a_state_of_a_loss_that_is_not_finite_is_not_saved():
    trainer, loader = trainer_of(["log.every_steps=1000", "checkpoint.every_steps=6"])
    trainer.folder.save_state = lambda state, keep, **content: pytest.fail("saved")
    rates = np.full(20, 0.01, np.float32)
    rates[3] = np.inf
    with pytest.raises(DivergedError, match="step 5,"):
        trainer.train_epoch(loader, rates, Shown())


def test_a_window_lasts_about_a_second(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    window = Window(None)
    window.begin(BATCH)

    def pass_steps(seconds, compiled=False):
        steps = 0
        while not steps or not (window.is_full or compiled):
            window.add(0.25 * seconds)
            now[0] += seconds
            steps += 1
        window.close(compiled)
        window.choose_size(Ranks())
        return steps

    assert pass_steps(60.0, compiled=True) == 1
    assert pass_steps(0.05) == FIRST_STEPS
    assert pass_steps(0.05) == 20  # a second
    assert window.clock == Clock(30 * BATCH, pytest.approx(1.5), pytest.approx(0.375))
    window.begin(BATCH)
    assert pass_steps(0.05) == 20  # the next epoch begins with the size of the last
    window.begin(BATCH)
    window.size = FIRST_STEPS
    pass_steps(1e-6)
    assert window.size == MOST_STEPS < ROWS
    window.begin(BATCH)
    window.size = FIRST_STEPS
    pass_steps(30.0)
    assert window.size == 1
