"""What resuming sends to the other ranks, and what it allows to change."""

from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.config.load import make_config
from src.config.schema import RuntimeConfig
from src.data.datasets import load_samples
from src.data.loading import train_loader
from src.errors import UserError
from src.runs import resume
from src.runs.resume import choose_workers, pack, refuse_changes, refuse_workers, unpack
from src.runtime import device
from src.runtime.parallel import Ranks
from src.weights.checkpoint import Checkpoint

DIGITS = {"name": "digits", "image_size": 8, "channels": 1}


def checkpoint(data, ranks=1):
    values = np.random.default_rng(0).normal(size=(3, 4, 1, 2)).astype(np.float32)
    return Checkpoint(
        path=Path("run/state.ckpt"),
        config=make_config({"data": data, "train": {"batch_size": 4}}),
        classes=["ä", "b"],
        epoch=2,
        best={"epoch": 1, "top1": 0.1 + 0.2, "top5": 1.0, "loss": float("nan")},
        versions={"mindspore": "2.7.0"},
        weights={"a.weight": ms.Parameter(values, name="a.weight"), "b": ms.Parameter(values[0, 0, 0], name="b")},
        average={"a.weight": ms.Parameter(values * np.inf, name="average.a.weight")},
        optimizer={"optimizer.loss_scale_counter": ms.Parameter(ms.Tensor(7, ms.int32), name="counter")},
        state={"ranks": ranks, "rows": [{"epoch": 1, "lr": 1e-3}]},
    )


def test_a_state_arrives_on_the_other_ranks_as_it_was():
    sent = checkpoint(DIGITS)
    arrived = unpack(pack(sent))
    for part in ("weights", "average", "optimizer"):
        before, after = getattr(sent, part), getattr(arrived, part)
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert (after[name].shape, after[name].dtype) == (value.shape, value.dtype)
            assert after[name].asnumpy().tobytes() == value.asnumpy().tobytes()
    empty = {"weights": {}, "average": {}, "optimizer": {}}
    assert repr(replace(arrived, **empty)) == repr(replace(sent, **empty))


def loader_of(data, workers):
    config = make_config({"data": {**data, "workers": workers}, "train": {"batch_size": 4}, "augment": {"crop": "pad"}})
    return config, train_loader(config, load_samples(config.data, "train"))


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)


def test_workers_may_change_if_the_images_are_arrays(many_cores):
    resumed = checkpoint({**DIGITS, "workers": 2})
    config, loader = loader_of(DIGITS, 4)
    refuse_changes(resumed.config, config.model_copy(update={"augment": resumed.config.augment}))
    refuse_workers(resumed, loader, Ranks())


def test_workers_of_augmented_files_keep_their_number(many_cores, photos, monkeypatch):
    data = {"name": "image_folder", "root": str(photos), "image_size": 32}
    resumed = checkpoint({**data, "workers": 2})
    _, loader = loader_of(data, 4)
    with pytest.raises(UserError, match=r"data.workers: 4 differs from the run's value 2, .*; pass data.workers=2$"):
        refuse_workers(resumed, loader, Ranks())
    refuse_workers(resumed, loader_of(data, 2)[1], Ranks())
    # Another number of ranks distributes the images in another way, so the workers may change, too.
    refuse_workers(checkpoint({**data, "workers": 2}, ranks=4), loader, Ranks())
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(UserError, match=r"resume on a machine with at least 2 cores \(found 1\)"):
        refuse_workers(resumed, loader, Ranks())


def test_workers_that_are_not_given_are_those_of_the_run(many_cores, monkeypatch):
    monkeypatch.setattr(resume, "workers_of", lambda data, sharing: data.workers or 8 // sharing)
    config = make_config({"data": DIGITS})
    resumed = checkpoint({**DIGITS, "workers": 3})
    assert config.data.workers is None
    assert choose_workers(config, None, Ranks()) == 8
    assert choose_workers(config, resumed, Ranks()) == 3
    assert choose_workers(make_config({"data": {**DIGITS, "workers": 5}}), resumed, Ranks()) == 5
    assert choose_workers(config, checkpoint({**DIGITS, "workers": 3}, ranks=2), Ranks()) == 8
    assert choose_workers(config, checkpoint({**DIGITS, "workers": 32}), Ranks()) == 8


def test_ranks_that_have_joined_keep_their_device(monkeypatch):
    seeds = []
    monkeypatch.setattr(device, "set_mode_and_seed", lambda runtime, seed: seeds.append(seed))
    for name in ("auto", "cpu"):
        device.keep_device(make_config({"runtime": {"device": name}}).runtime, 3, RuntimeConfig())
    assert seeds == [3, 3]
    with pytest.raises(
        UserError, match=r"found CPU, expected gpu\); with several ranks, add runtime.device=gpu to --resume"
    ):
        device.keep_device(make_config({"runtime": {"device": "gpu"}}).runtime, 3, RuntimeConfig())
