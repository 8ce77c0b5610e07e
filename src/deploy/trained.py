"""An exported file in the place of a checkpoint: what eval.py needs of either."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import mindspore as ms
import numpy as np

from src.config.load import make_config
from src.config.schema import Config
from src.deploy.description import FORMATS, read_description
from src.deploy.runtimes.runtimes import open_runtime
from src.errors import UserError
from src.evaluation.evaluate import make_eval_step
from src.kernels.convert import use_kernels
from src.runtime.device import use_device
from src.weights.checkpoint import adapt_config, open_checkpoint

# What may differ from the training when an artefact is evaluated: its input and its runtime are fixed.
FREE_KEYS = ("data.name", "data.root", "data.crop_fraction", "data.workers", "runtime.device")
SMALLEST = 1e-30  # probabilities below are not told apart


@dataclass(frozen=True)
class Trained:
    """A trained network, ready to run, whichever file it comes from."""

    config: Config
    classes: list  # names, in the order of the logits
    step: object  # uint8 images (batch_size, H, W, C), a Tensor, to logits (batch_size, classes), a Tensor
    batch_size: Optional[int]  # where the file fixes it


def open_trained(path, overrides, lite_python=None):
    """Return the `Trained` network of a checkpoint or of an artefact, the latter in its own runtime.

    Raises `UserError` where the file, its description, an override or the runtime is missing or does not fit.
    """
    if Path(path).suffix.lstrip(".") in FORMATS:
        return open_artefact(path, overrides, lite_python)
    if lite_python is not None:
        raise UserError(f"--lite-python {lite_python}: is for .ms files, not {path}")
    checkpoint, config, classifier = open_checkpoint(path, overrides)
    use_kernels(classifier, config.runtime)
    step = make_eval_step(classifier, compiled=config.runtime.mode == "graph")
    return Trained(config, checkpoint.classes, step, None)


def open_artefact(path, overrides, lite_python):
    if lite_python is not None and Path(path).suffix != ".ms":
        raise UserError(f"--lite-python {lite_python}: is for .ms files, not {path}")
    description = read_description(path)
    if description.format == "air":
        raise UserError(f"{path}: AIR files run only with the device's own tools, which are not known here")
    source = f"{path}.json"
    config = adapt_config(make_config(description.checkpoint.config, source=source), overrides, FREE_KEYS)
    use_device(config.runtime)
    runtime = open_runtime(path, lite_python)
    mean, std = (np.float32(values) for values in (config.data.mean, config.data.std))

    def step(images):
        images = images.asnumpy()
        if description.input.kind == "tensor":
            images = ((np.float32(images) / 255 - mean) / std).transpose(0, 3, 1, 2)
        output = runtime.run(np.ascontiguousarray(images))
        # The logarithms of probabilities are logits too.
        logits = output if description.output.meaning == "logits" else np.log(np.maximum(output, SMALLEST))
        return ms.Tensor(logits)

    return Trained(config, description.classes, step, description.input.shape[0])
