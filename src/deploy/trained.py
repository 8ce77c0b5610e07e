"""Open a checkpoint or an exported file in the same way, for eval.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Union

import mindspore as ms
import numpy as np

from src.config.schema import Config
from src.deploy.description import format_of, read_description
from src.deploy.runtimes.runtimes import open_runtime
from src.errors import UserError
from src.evaluation.evaluate import make_eval_step
from src.kernels.convert import use_kernels
from src.runtime.device import use_device
from src.weights.checkpoint import adapt_config, open_checkpoint, recorded_config

# Keys that may differ from training when an exported file is evaluated; the file fixes its input and its runtime.
FREE_KEYS = (
    "data.name",
    "data.root",
    "data.crop_fraction",
    "data.interpolation",
    "data.antialias",
    "data.workers",
    "runtime.device",
)
SMALLEST_PROBABILITY = 1e-30  # smaller probabilities count as this, so that their logarithms are finite


@dataclass(frozen=True)
class Trained:
    """A trained network that is ready to run, from a checkpoint or from an exported file."""

    config: Config
    classes: list[str]  # names, in the order of the logits
    step: Callable[[ms.Tensor], ms.Tensor]  # from images uint8 (batch_size, H, W, C) to logits (batch_size, classes)
    batch_size: Optional[int]  # fixed by an exported file; None: any number of images


def open_trained(path: Union[str, Path], overrides: Sequence[str], lite_python: Optional[str] = None) -> Trained:
    """Return the `Trained` network of a checkpoint or of an exported file, which runs in its own runtime.

    Raise a `UserError` if the file, its description or the runtime is missing or damaged, or an override is not
    allowed.
    """
    if format_of(path) is not None:
        return open_exported(path, overrides, lite_python)
    if lite_python is not None:
        raise UserError(f"--lite-python {lite_python}: is used with .ms files only (found {path}); leave it out")
    checkpoint, config, classifier = open_checkpoint(path, overrides)
    use_kernels(classifier, config.runtime)
    step = make_eval_step(classifier, compiled=config.runtime.mode == "graph")
    return Trained(config, checkpoint.classes, step, None)


def open_exported(path: Union[str, Path], overrides: Sequence[str], lite_python: Optional[str]) -> Trained:
    """Return the `Trained` network of an exported file; see `open_trained`."""
    if lite_python is not None and Path(path).suffix != ".ms":
        raise UserError(f"--lite-python {lite_python}: is used with .ms files only (found {path}); leave it out")
    description = read_description(path)
    if description.format == "air":
        raise UserError(f"{path}: evaluating AIR files is not supported; only Ascend's own tools run them")
    source = f"{path}.json"
    config = adapt_config(recorded_config(description.checkpoint.config, source), overrides, FREE_KEYS)
    use_device(config.runtime)
    runtime = open_runtime(path, lite_python)
    mean, std = (np.array(values, np.float32) for values in (config.data.mean, config.data.std))

    def step(images):
        array = images.asnumpy()
        if description.input.kind == "tensor":
            array = ((array.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        output = runtime.run(np.ascontiguousarray(array))
        # The softmax of logarithms of probabilities gives the probabilities again, so the logarithms serve as logits.
        logits = output if description.output.meaning == "logits" else np.log(np.maximum(output, SMALLEST_PROBABILITY))
        return ms.Tensor(logits)

    return Trained(config, description.classes, step, description.input.shape[0])
