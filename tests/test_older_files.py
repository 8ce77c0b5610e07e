"""Files that were written before version 0.1.0, by code that is gone: they must load and compute what they did.

The weights are rounded to three bits of mantissa, so that the packed files stay small.
"""

import json
import lzma

import mindspore as ms
import numpy as np
import pytest

from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.deploy.trained import open_trained
from src.evaluation.evaluate import predict, softmax, summarize
from tests.conftest import ROOT

REFERENCE = ROOT / "tests" / "reference"
DESCRIPTION = json.loads((REFERENCE / "before_0_1.onnx.json").read_text())
LOGITS = json.loads((REFERENCE / "before_0_1.logits.json").read_text())


@pytest.fixture(params=["ckpt", "onnx"])
def trained(request, tmp_path):
    """Open the checkpoint, and the file that was exported from it."""
    name = f"before_0_1.{request.param}"
    (tmp_path / name).write_bytes(lzma.decompress((REFERENCE / f"{name}.xz").read_bytes()))
    if request.param == "onnx":
        (tmp_path / f"{name}.json").write_text(json.dumps(DESCRIPTION))
    return open_trained(tmp_path / name, [])


def test_the_probabilities_are_those_of_the_code_that_wrote_the_file(trained):
    images = np.random.default_rng(LOGITS["seed"]).integers(0, 256, LOGITS["shape"]).astype(np.uint8)
    size = trained.batch_size or len(images)
    logits = [trained.step(ms.Tensor(images[i : i + size])).asnumpy() for i in range(0, len(images), size)]
    np.testing.assert_allclose(softmax(np.concatenate(logits)), softmax(np.array(LOGITS["logits"])), atol=1e-5)


def test_the_top1_is_what_was_measured_then(trained):
    samples = load_samples(trained.config.data, "test", trained.classes)
    result = summarize(predict(trained.step, eval_loader(trained.config, samples, trained.batch_size)))
    assert (result.images, result.top1) == (364, DESCRIPTION["verification"]["checkpoint_top1"])
