import json
import lzma

import mindspore as ms
import numpy as np
import pytest

from src.config.load import make_config
from src.deploy.trained import open_trained
from src.errors import UserError
from src.models import create_model
from src.weights.checkpoint import adapt_config, load_checkpoint, restore, save_checkpoint
from tests.conftest import ROOT

CLASSES = ["Größe", 'naïve, "quoted"', "猫"]
BEST = {"epoch": 3, "top1": 0.5, "top5": 1.0, "loss": 1.25}


@pytest.fixture
def saved(tmp_path):
    """A checkpoint with random weights and moving statistics: (path, config, classifier)."""
    config = make_config({"model": {"name": "shufflenet_v2", "width": 0.5}, "data": {"image_size": 32}})
    classifier = create_model(config.model, config.data, len(CLASSES))
    generator = np.random.default_rng(0)
    for parameter in classifier.get_parameters():
        parameter.set_data(ms.Tensor(generator.uniform(0.1, 1, parameter.shape).astype(np.float32)))
    path = tmp_path / "best.ckpt"
    save_checkpoint(path, classifier.parameters_dict(), config, CLASSES, 4, BEST)
    return path, config, classifier


def test_a_loaded_checkpoint_equals_the_saved_checkpoint(saved):
    path, config, classifier = saved
    checkpoint = load_checkpoint(path)
    assert checkpoint.config == config
    assert checkpoint.classes == CLASSES
    assert (checkpoint.epoch, checkpoint.best) == (4, BEST)
    assert checkpoint.versions["mindspore"] == ms.__version__
    restored = restore(checkpoint).parameters_dict()
    for name, parameter in classifier.parameters_dict().items():
        assert (restored[name].asnumpy() == parameter.asnumpy()).all()
    assert [file.name for file in path.parent.iterdir()] == ["best.ckpt"]


def test_a_truncated_file_is_an_error(saved, capfd):
    path, _, _ = saved
    content = path.read_bytes()
    for length in [0, 1, 100, *np.linspace(200, len(content) - 20, 12).astype(int)]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"best.ckpt: .*(truncated|description is missing)"):
            load_checkpoint(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), SystemExit(143), PermissionError(13, "no"), MemoryError()])
def test_a_file_is_not_called_damaged_if_reading_it_is_interrupted_or_fails(saved, monkeypatch, reason):
    """MindSpore turns every exception into a ValueError."""

    def interrupted(*arguments, **options):
        raise reason

    monkeypatch.setattr("mindspore.train.serialization.Parameter", interrupted)
    with pytest.raises(type(reason)) as caught:
        load_checkpoint(saved[0])
    assert caught.value is reason


def test_flipped_bits_are_an_error(saved):
    path, _, _ = saved
    content = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(content) - 20, 12):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="best.ckpt: "):
            restore(load_checkpoint(path))


def test_missing_files_and_files_of_other_programs_are_errors(saved, tmp_path):
    path, _, classifier = saved
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere.ckpt")
    text = tmp_path / "notes.ckpt"
    text.write_text("this is not a checkpoint")
    with pytest.raises(UserError, match=r"notes.ckpt: is truncated, damaged, or not a MindSpore checkpoint"):
        load_checkpoint(text)
    other_suffix = tmp_path / "photo.jpg"
    other_suffix.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"photo.jpg: "):
        load_checkpoint(other_suffix)
    foreign = tmp_path / "foreign.ckpt"
    ms.save_checkpoint(classifier, str(foreign))
    with pytest.raises(UserError, match=r"foreign.ckpt: was not written by PocketSpore"):
        load_checkpoint(foreign)


def test_weights_of_another_network_are_an_error(saved):
    path, config, _ = saved
    wider = make_config(config.model_dump(), ["model.width=1.0"])
    weights = create_model(wider.model, wider.data, len(CLASSES)).parameters_dict()
    save_checkpoint(path, weights, config, CLASSES, 1, BEST)
    with pytest.raises(
        UserError,
        match=r"best.ckpt: the weights do not fit the network of its config: shape of \S+ \(found .*, expected .*\)",
    ):
        restore(load_checkpoint(path))


def test_settings_that_change_the_network_cannot_be_overridden(saved):
    _, config, _ = saved
    assert adapt_config(config, ["runtime.mode=pynative"]).runtime.mode == "pynative"
    with pytest.raises(UserError, match=r"model.width=1.0: cannot be changed for a trained network"):
        adapt_config(config, ["model.width=1.0"])
    with pytest.raises(UserError, match=r"did you mean data.root"):
        adapt_config(config, ["data.rot=x"])


@pytest.mark.parametrize("name", ["before_0_1.ckpt", "before_0_1.onnx"])
def test_older_files_are_evaluated_without_antialiasing_unless_the_user_asks_for_it(tmp_path, name):
    reference = ROOT / "tests" / "reference"
    (tmp_path / name).write_bytes(lzma.decompress((reference / f"{name}.xz").read_bytes()))
    if name.endswith(".onnx"):
        description = json.loads((reference / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(description))
    assert open_trained(tmp_path / name, []).config.data.antialias is False
    changed = open_trained(tmp_path / name, ["data.antialias=true", "data.interpolation=bicubic"]).config.data
    assert (changed.antialias, changed.interpolation) == (True, "bicubic")
    assert make_config({}).data.antialias is True
