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
from src.weights.readers import read_tensors, read_weights
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
    assert "the moving average" in load_pretrained(classifier, config.model, path).origin()
    assert all((parameter.asnumpy() == 0.5).all() for parameter in classifier.get_parameters())


@pytest.mark.parametrize("chosen", [None, "symmetric"])
def test_padding_of_mindcv_is_taken_stored_and_left_to_the_user(chosen, tmp_path):
    peer = mindcv.create_model("mobilenet_v3_small_100", num_classes=10).set_train(False)
    generator = np.random.default_rng(0)
    for parameter in peer.get_parameters():
        value = generator.uniform(0.5, 1.5, parameter.shape)
        if parameter.ndim > 1:
            value = generator.normal(0, np.sqrt(2 / np.prod(parameter.shape[1:])), parameter.shape)
        parameter.set_data(ms.Tensor(value.astype(np.float32)))
    ms.save_checkpoint(peer, str(tmp_path / "peer.ckpt"))
    classifier, config = build("mobilenet_v3_small", 1.0, padding=chosen)
    imported = load_pretrained(classifier, config.model, tmp_path / "peer.ckpt")
    assert imported.padding == (chosen or "same")
    config.model.norm_epsilon, config.model.padding = imported.norm_epsilon, imported.padding
    save_checkpoint(tmp_path / "ours.ckpt", classifier.parameters_dict(), config, [str(i) for i in range(10)], 0, None)

    # A network that is built from the checkpoint, and one that starts from the checkpoint's weights, pad likewise.
    restored = restore(load_checkpoint(tmp_path / "ours.ckpt"))
    started, fresh = build("mobilenet_v3_small", 1.0)
    assert load_pretrained(started, fresh.model, tmp_path / "ours.ckpt").padding == imported.padding
    pixels = ms.Tensor(generator.normal(size=(2, 3, 64, 64)).astype(np.float32))
    expected = peer(pixels).asnumpy()
    for network in (restored, started):
        difference = abs(network.set_train(False).classify(pixels).asnumpy() - expected).max()
        assert (difference < 1e-5 * abs(expected).max()) == (chosen is None)


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3)])
def test_weights_of_color_and_gray_stems_are_converted(theirs, ours, tmp_path):
    """With equal means and standard deviations, a gray image has the logits of the same image as RGB."""

    def network(channels):
        data = {"channels": channels, "mean": [0.4] * channels, "std": [0.2] * channels}
        config = make_config({"model": {"name": "mobilenet_v1", "width": 0.25}, "data": data})
        return create_model(config.model, config.data, 10).set_train(False), config

    trained, config = network(theirs)
    for parameter in trained.get_parameters():
        parameter.set_data(ms.Tensor(random_tensor(parameter.name, parameter.shape)))
    save_checkpoint(tmp_path / "w.ckpt", trained.parameters_dict(), config, [str(i) for i in range(10)], 1, None)
    classifier, config = network(ours)
    imported = load_pretrained(classifier, config.model, tmp_path / "w.ckpt")
    change = "3 channels are summed for 1 channel" if ours == 1 else "1 channel are repeated for 3 channels"
    assert change in imported.origin()
    gray = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)
    images = {1: ms.Tensor(gray), 3: ms.Tensor(gray.repeat(3, 3))}
    expected = trained(images[theirs]).asnumpy()
    logits = classifier(images[ours]).asnumpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * abs(expected).max())


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
            lambda tensors: tensors.update({"features.0.0.weight": np.zeros((16, 2, 3, 3))}),
            r"1 with another shape: features.0.0.weight \(found \(16, 2, 3, 3\), expected \(16, 3, 3, 3\)\)",
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
    with pytest.raises(UserError, match=r"w.pth: .*it needs io.open"):
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


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("torchvision_training", "model_ema", 2.0),
        ("timm_training", "state_dict_ema", 1.5),
        ("parallel", None, -3.140625),
    ],
)
def test_training_checkpoints_of_pytorch_are_read(file, key, value):
    """Files of write_training_checkpoints.py: Namespace and optimizer, moving averages, wrappers and bfloat16."""
    weights = read_weights(ROOT / "tests" / "reference" / f"{file}.pth")
    assert weights.key == (key or "state_dict")
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert set(weights.tensors) == {"0.weight", *(f"1.{name}" for name in names)}
    assert weights.tensors["0.weight"].shape == (2, 3, 1, 1)
    # -3.14159 has the bits C049 0FD0; bfloat16 keeps the first 16 of them, which are -3.140625.
    assert all(
        (tensor.astype(np.float32) == int(value) if "num" in name else tensor.astype(np.float32) == value).all()
        for name, tensor in weights.tensors.items()
    )


def test_bfloat16_in_safetensors(tmp_path):
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes.fromhex("49c0803f")
    (tmp_path / "w.safetensors").write_bytes(content)
    assert read_tensors(tmp_path / "w.safetensors")["a"].astype(np.float32).tolist() == [-3.140625, 1.0]


class Listed:
    """An object whose pickle calls a function, sets its state and adds items to it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w"), {"state": Evil(self.path)}, iter([1]), iter([(1, Evil(self.path))])


def test_other_objects_in_a_training_checkpoint_are_ignored_and_not_executed(tmp_path):
    trace = tmp_path / "trace"
    intact = zipfile.ZipFile(ROOT / "tests" / "reference" / "small.pth")
    entry = next(name for name in intact.namelist() if name.endswith("/data.pkl"))
    # Without its first two bytes (PROTO) and last byte (STOP), a pickle can stand inside another pickle.
    evil, weights = (pickle.dumps(Listed(trace), protocol=2)[2:-1], intact.read(entry)[2:-1])
    outer = b"\x80\x02}(X\x04\0\0\0args" + evil + b"X\x05\0\0\0model" + weights + b"u."
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for name in intact.namelist():
            archive.writestr(name, outer if name == entry else intact.read(name))
    weights = read_weights(tmp_path / "w.pth")
    assert (weights.key, set(weights.tensors)) == ("model", {"a", "b", "c", "d"})
    assert not trace.exists()


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
