import io
import json
import pickle
import zipfile

import mindcv
import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import save_file

from src.config.load import make_config
from src.errors import UserError
from src.models import create_model
from src.weights.checkpoint import load_checkpoint, restore, save_checkpoint
from src.weights.pretrained import load_pretrained
from src.weights.readers import read_tensors
from tests.conftest import ROOT
from tests.reference.random_weights import random_images, random_tensor

REFERENCES = json.loads((ROOT / "tests" / "reference" / "parity.json").read_text())["references"]


def build(name, width=1.0, classes=10, **settings):
    """Return (classifier, config) of a network whose input are pixels in 0..1, as in the references."""
    data = {"mean": [0.0] * 3, "std": [1.0] * 3}
    config = make_config({"model": {"name": name, "width": width, **settings}, "data": data})
    return create_model(config.model, config.data, classes), config


def tensors_of(reference):
    """Return the random weights of a reference, as arrays by name."""
    return {
        key: random_tensor(key, shape) if shape else np.array(7)  # num_batches_tracked
        for key, shape in reference["tensors"].items()
    }


def settings_of(reference):
    """Return the settings of the section `model` that give the network of a reference."""
    layout = {"layout": "equal_split"} if reference["network"] == "shufflenet_v2" else {}
    return {"name": reference["network"], "width": reference["width"], **layout}


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: f"{r['source']}-{r['network']}-{r['width']}")
def test_logits_equal_the_logits_of_torchvision_and_timm(reference, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(tensors_of(reference), path)
    classifier, config = build(**settings_of(reference))
    imported = load_pretrained(classifier, config.model, path)
    # The source is found from the names of the tensors: no other library uses the same names for this network.
    assert imported[:2] == (reference["source"], False)
    config.model.norm_epsilon = imported.norm_epsilon
    expected = np.array(reference["logits"])
    assert abs(expected[0] - expected[1]).max() > 1e-3 * abs(expected).max()  # the logits depend on the image
    logits = classifier.set_train(False)(ms.Tensor(random_images())).asnumpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, abs(expected).max()))

    # The checkpoint stores the epsilon.
    save_checkpoint(tmp_path / "ours.ckpt", classifier.parameters_dict(), config, [str(i) for i in range(10)], 0, None)
    restored = restore(load_checkpoint(tmp_path / "ours.ckpt"))
    assert (restored(ms.Tensor(random_images())).asnumpy() == logits).all()


def test_a_run_starts_from_the_moving_average_of_another_run(tmp_path):
    classifier, config = build(name="mobilenet_v1", width=0.25)
    weights = classifier.parameters_dict()
    average = {name: np.full(parameter.shape, 0.5, np.float32) for name, parameter in weights.items()}
    optimizer = {"optimizer.velocity.w": np.zeros(3, np.float32)}
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, weights, config, [str(i) for i in range(10)], 1, None, average=average, optimizer=optimizer)
    load_pretrained(classifier, config.model, path)
    assert all((parameter.asnumpy() == 0.5).all() for parameter in classifier.get_parameters())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"name": "shufflenet_v1", "width": 0.5, "groups": 8}, "shufflenet_v1_g8_05"),
        ({"name": "shufflenet_v2", "width": 0.5}, "shufflenet_v2_x0_5"),
        ({"name": "mobilenet_v1", "width": 0.25}, "mobilenet_v1_025"),
        ({"name": "mobilenet_v2", "width": 0.75}, "mobilenet_v2_075"),
        ({"name": "mobilenet_v3_small"}, "mobilenet_v3_small_100"),
        ({"name": "mnasnet", "width": 0.5}, "mnasnet_050"),
        ({"name": "ghostnet", "width": 0.5}, "ghostnet_050"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_tensor_of_a_mindcv_checkpoint_is_loaded_into_the_right_layer(ours, theirs, tmp_path):
    peer = mindcv.create_model(theirs, num_classes=10)
    for parameter in peer.get_parameters():
        parameter.set_data(ms.Tensor(random_tensor(parameter.name, parameter.shape)))
    ms.save_checkpoint(peer, str(tmp_path / "peer.ckpt"))
    classifier, config = build(**ours)
    assert load_pretrained(classifier, config.model, tmp_path / "peer.ckpt")[:2] == ("mindcv", False)
    # tests/models/test_parity.py shows that the logits agree if the parameters are copied in this order.
    for parameter, partner in zip(classifier.get_parameters(), peer.get_parameters()):
        assert (parameter.asnumpy() == partner.asnumpy()).all()


def test_with_another_number_of_classes_the_head_keeps_its_initial_weights(tmp_path):
    save_file(tensors_of(REFERENCES[0]), tmp_path / "w.safetensors")
    classifier, config = build(**settings_of(REFERENCES[0]), classes=3)
    before = classifier.head.weight.asnumpy().copy()
    assert load_pretrained(classifier, config.model, tmp_path / "w.safetensors")[:2] == ("torchvision", True)
    assert (classifier.head.weight.asnumpy() == before).all()
    stem = random_tensor("features.0.0.weight", classifier.backbone.stem.conv.weight.shape)
    assert (classifier.backbone.stem.conv.weight.asnumpy() == stem).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("features.0.0.weight"), "1 missing: features.0.0.weight"),
        (lambda tensors: tensors.update(extra=np.zeros(3)), "1 unexpected: extra"),
        (
            lambda tensors: tensors.update({"features.0.0.weight": np.zeros((16, 1, 3, 3))}),
            r"1 with another shape: features.0.0.weight \(found \(16, 1, 3, 3\), expected \(16, 3, 3, 3\)\)",
        ),
    ],
)
def test_a_missing_unexpected_or_misshaped_tensor_is_an_error_and_nothing_is_loaded(change, message, tmp_path):
    tensors = tensors_of(REFERENCES[0])
    change(tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    classifier, config = build(**settings_of(REFERENCES[0]))
    before = [parameter.asnumpy().copy() for parameter in classifier.get_parameters()]
    with pytest.raises(UserError, match=message):
        load_pretrained(classifier, config.model, tmp_path / "w.safetensors")
    assert all((old == new.asnumpy()).all() for old, new in zip(before, classifier.get_parameters()))


def test_layouts_of_equal_size_are_not_confused(tmp_path):
    reference = next(r for r in REFERENCES if (r["network"], r["width"]) == ("shufflenet_v2", 0.5))
    save_file(tensors_of(reference), tmp_path / "w.safetensors")
    classifier, config = build("shufflenet_v2", 0.5)
    with pytest.raises(UserError, match=r"model.layout: does not fit .* \(found authors, expected equal_split\)"):
        load_pretrained(classifier, config.model, tmp_path / "w.safetensors")


class Evil:
    """An object whose pickle calls `open` to create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def zipped(content):
    """Return a file as torch.save writes it, with the pickle `content`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return file.getvalue()


def test_a_malicious_pickle_is_an_error_and_is_not_executed(tmp_path):
    trace = tmp_path / "trace"
    path = tmp_path / "w.pth"
    path.write_bytes(zipped(pickle.dumps({"features.0.0.weight": Evil(trace)})))
    with pytest.raises(UserError, match=r"w.pth: .* it needs io.open"):
        read_tensors(path)
    assert not trace.exists()


def test_a_pth_file_of_pytorch_is_read():
    """small.pth: torch.save (2.13.0) of {"a": arange(6) as 2x3, "b": its transpose, "c": its last column, "d": 7}."""
    tensors = read_tensors(ROOT / "tests" / "reference" / "small.pth")
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert {key: value.tolist() for key, value in tensors.items()} == {
        "a": a.tolist(),
        "b": a.T.tolist(),
        "c": a[:, 2].tolist(),
        "d": 7,
    }


def test_damaged_files_and_other_files_are_errors(tmp_path):
    intact = (ROOT / "tests" / "reference" / "small.pth").read_bytes()
    cases = {
        "truncated.pth": intact[: len(intact) // 2],
        "text.pth": b"hello",
        "empty.pth": b"",
        "other.pth": zipped(pickle.dumps([1, 2])),
        "nothing.pth": zipped(pickle.dumps({})),
        "garbage.pth": zipped(b"garbage"),
        "text.safetensors": b"hello there, this is not such a file",
        "text.ckpt": b"hello",
        "weights.bin": b"hello",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_tensors(tmp_path / name)
    with pytest.raises(UserError, match="nowhere.pth: no such file"):
        read_tensors(tmp_path / "nowhere.pth")
