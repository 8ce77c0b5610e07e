"""Writing MindIR files, and the proof that a file computes what its checkpoint does."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.engine.checkpoint import versions
from src.engine.step import make_eval_step
from src.errors import UserError

MAX_DIFFERENCE = 1e-4  # between the outputs of checkpoint and file
INPUTS = ("image", "tensor")


class Deployed(nn.Cell):
    """The classifier as it is shipped: probabilities or logits, of uint8 images or of normalised float32 tensors."""

    def __init__(self, classifier, input_kind, logits):
        super().__init__()
        self.network = classifier
        self.takes_images = input_kind == "image"
        self.logits = logits

    def construct(self, x):
        scores = self.network(x) if self.takes_images else self.network.classify(x)
        return scores if self.logits else ops.softmax(scores, -1)


def export_mindir(checkpoint, classifier, samples_loader, output, source, input_kind="image", logits=False):
    """Write `output` (.mindir) and its description `output`.json; return the description.

    The file takes one image: uint8 (1, H, W, C), or with `input_kind` "tensor" float32 (1, C, H, W), normalised. It is
    reloaded and run on the images of `samples_loader`, whose batches hold one image; `source` is the checkpoint's path.
    A difference over MAX_DIFFERENCE is a `UserError` and leaves no file.
    """
    output = Path(output)
    deployed = Deployed(classifier, input_kind, logits).set_train(False)
    data = checkpoint.config.data
    image = np.zeros((1, data.image_size, data.image_size, data.channels), np.uint8)
    example = classifier.preprocess(ms.Tensor(image)) if input_kind == "tensor" else ms.Tensor(image)
    output.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that moving it there is one step and a failed file never has the asked name.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}-") as folder:
        written = Path(folder) / "model.mindir"
        ms.export(deployed, example, file_name=str(written), file_format="MINDIR")
        verification = verify(deployed, written, classifier.preprocess, samples_loader, input_kind)
        description = describe(checkpoint, example, output, source, input_kind, logits, verification)
        sidecar = Path(folder) / "model.json"
        sidecar.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        os.chmod(written, 0o644)  # MindSpore leaves it read-only
        os.replace(written, output)
        os.replace(sidecar, f"{output}.json")
    return description


def verify(deployed, path, preprocess, loader, input_kind):
    """Run a MindIR file and the Cell that it was made of on the loader's images.

    Return a dict: `images`, `max_difference` of their outputs, `top1` of the file, `checkpoint_top1`.
    """
    steps = [make_eval_step(network, compiled=True) for network in (deployed, nn.GraphCell(ms.load(str(path))))]
    largest, correct, images_seen = 0.0, np.zeros(2, int), 0
    for images, labels in loader.epoch():
        x = ms.Tensor(images)
        x = preprocess(x) if input_kind == "tensor" else x
        expected, actual = (step(x).asnumpy() for step in steps)
        if not np.isfinite(actual).all():
            raise UserError(f"{path.name}: the exported file's output is not finite; no file was written")
        largest = max(largest, float(np.abs(expected - actual).max()))
        correct += [(expected.argmax(1) == labels).sum(), (actual.argmax(1) == labels).sum()]
        images_seen += len(images)
    if largest > MAX_DIFFERENCE:
        raise UserError(
            f"verification failed: file and checkpoint differ by {largest:.2g} on {images_seen} images, "
            f"allowed is {MAX_DIFFERENCE:g}; no file was written"
        )
    return {
        "images": images_seen,
        "max_difference": largest,
        "top1": float(correct[1] / images_seen),
        "checkpoint_top1": float(correct[0] / images_seen),
    }


def describe(checkpoint, example, output, source, input_kind, logits, verification):
    """Return the content of the JSON beside the file: all that an application needs to use it."""
    data = checkpoint.config.data
    takes_images = input_kind == "image"
    return {
        "format": "mindir",
        "input": {
            "shape": list(example.shape),
            "dtype": "uint8" if takes_images else "float32",
            "layout": "NHWC" if takes_images else "NCHW",
            "range": "0 to 255" if takes_images else "(pixel / 255 - mean) / std",
            "colour": "RGB" if data.channels == 3 else "gray",
        },
        "preprocessing": {
            "inside_the_file": takes_images,
            "mean": data.mean,
            "std": data.std,
            "image_size": data.image_size,
            "crop_fraction": data.crop_fraction,
        },
        "output": {"shape": [1, len(checkpoint.classes)], "meaning": "logits" if logits else "probabilities"},
        "classes": checkpoint.classes,
        "checkpoint": {
            "file": Path(source).name,
            "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest(),
            "epoch": checkpoint.epoch,
            "network": checkpoint.config.model.model_dump(),
        },
        "verification": verification,
        "versions": versions(),
    }
