import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.config import make_config
from src.data.datasets import Samples
from src.data.loading import eval_loader
from src.deploy.mindir import export_mindir, verify
from src.engine.checkpoint import load_checkpoint, restore, save_checkpoint
from src.errors import UserError
from src.models import create_model

CLASSES = [str(i) for i in range(10)]


@pytest.fixture
def source(tmp_path, digit_images):
    """A checkpoint with random weights and eight real digits, one a batch: (path, loader)."""
    data = {"image_size": 16, "channels": 1, "crop_fraction": 1.0}
    config = make_config({"model": {"width": 0.5, "stem_stride": 1, "dropout": 0.2}, "data": data})
    classifier = create_model(config.model, config.data, 10)
    path = tmp_path / "some.ckpt"
    save_checkpoint(path, classifier.parameters_dict(), config, CLASSES, 1, {})
    samples = Samples(digit_images[0][:8, ..., None], digit_images[1][:8].astype(np.int32), CLASSES)
    return path, eval_loader(config, samples, batch_size=1)


@pytest.mark.parametrize(("input_kind", "logits"), [("image", False), ("tensor", True)])
def test_file_computes_what_the_checkpoint_does(source, tmp_path, input_kind, logits):
    path, loader = source
    checkpoint = load_checkpoint(path)
    classifier = restore(checkpoint, path)
    output = tmp_path / "out" / "net.mindir"
    description = export_mindir(checkpoint, classifier, loader, output, path, input_kind, logits)
    assert json.loads((tmp_path / "out" / "net.mindir.json").read_text()) == description
    assert sorted(file.name for file in output.parent.iterdir()) == ["net.mindir", "net.mindir.json"]

    network = nn.GraphCell(ms.load(str(output)))
    for images, _ in loader.epoch():
        x = images
        if input_kind == "tensor":
            data = checkpoint.config.data
            x = np.float32((images / 255 - data.mean) / data.std).transpose(0, 3, 1, 2)
        assert list(x.shape) == description["input"]["shape"]
        assert str(x.dtype) == description["input"]["dtype"]
        out = network(ms.Tensor(x)).asnumpy()
        scores = classifier(ms.Tensor(images)).asnumpy()
        expected = scores if logits else np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        np.testing.assert_allclose(out, expected, atol=1e-4)


def test_file_of_other_weights_fails_verification(source, tmp_path):
    path, loader = source
    checkpoint = load_checkpoint(path)
    classifier, other = restore(checkpoint, path), restore(checkpoint, path)
    other.head.bias.set_data(ms.Tensor(np.linspace(0, 1e-3, 10).astype(np.float32)))
    image = ms.Tensor(np.zeros((1, 16, 16, 1), np.uint8))
    ms.export(other, image, file_name=str(tmp_path / "other.mindir"), file_format="MINDIR")
    with pytest.raises(UserError, match=r"verification failed: file and checkpoint differ by 0.001"):
        verify(classifier, tmp_path / "other.mindir", classifier.preprocess, loader, "image")


def test_failed_verification_leaves_no_file(source, tmp_path, monkeypatch):
    path, loader = source
    checkpoint = load_checkpoint(path)
    monkeypatch.setattr("src.deploy.mindir.MAX_DIFFERENCE", -1.0)
    output = tmp_path / "out" / "net.mindir"
    with pytest.raises(UserError, match="verification failed"):
        export_mindir(checkpoint, restore(checkpoint, path), loader, output, path)
    assert list(output.parent.iterdir()) == []
