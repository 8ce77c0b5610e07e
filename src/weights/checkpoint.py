"""Checkpoints: the weights, and everything that describes them: config, class names, metrics and versions."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import mindspore as ms
import numpy as np

from src.config.load import make_config
from src.config.schema import Config
from src.errors import UserError, did_you_mean
from src.files import replacing
from src.models import create_model
from src.models.classifier import Classifier
from src.runtime.device import use_device
from src.versions import versions
from src.weights.readers import load_ckpt

# The settings that may change when a checkpoint is evaluated or exported. They do not change the trained network.
FREE_KEYS = (
    "data.name",
    "data.root",
    "data.image_size",
    "data.crop_fraction",
    "data.interpolation",
    "data.antialias",
    "data.workers",
    "data.val_fraction",
    "data.group",
    "data.download",
    "data.on_bad_image",
    "train.batch_size",
    "runtime.device",
    "runtime.mode",
    "runtime.kernels",
    "runtime.device_id",
    "runtime.memory_limit",
    "runtime.deterministic",
    "runtime.jit_level",
)
# Settings of the machine that trained the network. Another machine may not have them, so they are not taken over.
MACHINE_KEYS = ("device_id", "memory_limit", "deterministic", "jit_level")
ENTRY = "pocketspore"  # name of the entry beside the weights: a string, JSON
FORMAT = 1
AVERAGE, OPTIMIZER = "average.", "optimizer."  # prefixes of names in the file; the network's weights have no prefix


@dataclass(frozen=True)
class Checkpoint:
    """The content of the checkpoint file at `path`."""

    path: Path
    config: Config
    classes: list[str]  # names, in the order of the logits
    epoch: int  # completed epochs
    best: Optional[dict[str, Any]]  # the best epoch so far: epoch, top1, top5, loss on the test split; None: imported
    versions: dict[str, str]
    weights: dict[str, Any]  # parameter name: Parameter
    average: dict[str, Any]  # moving average of the weights, same names; empty if the run kept no moving average
    optimizer: dict[str, Any]  # state of the optimizer; empty if the file is not for resuming
    state: Optional[dict[str, Any]]  # fields of `RunState`; None if the file is not for resuming


class OpenCheckpoint(NamedTuple):
    """A checkpoint, its config with overrides, and its classifier, which is ready to compute on the config's device."""

    checkpoint: Checkpoint
    config: Config
    classifier: Classifier


def save_checkpoint(
    path: Union[str, Path],
    weights: Mapping[str, Any],
    config: Config,
    classes: list[str],
    epoch: int,
    best: Optional[dict[str, Any]],
    average: Optional[Mapping[str, Any]] = None,
    optimizer: Optional[Mapping[str, Any]] = None,
    state: Optional[dict[str, Any]] = None,
) -> None:
    """Write a checkpoint to `path`; the old file is replaced after the new file is complete and on the disk.

    `weights`, `average` and `optimizer` are {parameter name: Parameter or array}. The optimizer's names begin with
    OPTIMIZER. If the disk cannot store the file, an `OSError` is raised.
    """
    path = Path(path)
    description = {
        "format": FORMAT,
        "config": config.model_dump(),
        "classes": classes,
        "epoch": epoch,
        "best": best,
        "state": state,
        "versions": versions(),
    }
    averages = {AVERAGE + name: value for name, value in (average or {}).items()}
    tensors = [
        {"name": name, "data": ms.Tensor(value)} for name, value in {**weights, **averages, **(optimizer or {})}.items()
    ]
    with replacing(path, suffix=".ckpt") as partial:
        # MindSpore prints an error on stderr before it raises it.
        logging.disable(logging.CRITICAL)
        try:
            ms.save_checkpoint(tensors, str(partial), append_dict={ENTRY: json.dumps(description)}, crc_check=True)
        finally:
            logging.disable(logging.NOTSET)


def load_checkpoint(path: Union[str, Path]) -> Checkpoint:
    """Return the `Checkpoint` at `path`; if it is missing, damaged or not from PocketSpore, raise a `UserError`."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    weights = load_ckpt(path, crc_check=True)
    description = weights.pop(ENTRY, None)
    if not isinstance(description, str):
        raise UserError(f"{path}: was not written by PocketSpore, or is truncated; its description is missing")
    description = json.loads(description)
    if description["format"] != FORMAT:
        raise UserError(f"{path}: unknown format (found {description['format']}, expected {FORMAT})")
    parts: dict[str, dict[str, Any]] = {prefix: {} for prefix in ("", AVERAGE, OPTIMIZER)}
    for name, value in weights.items():
        prefix = next((prefix for prefix in (AVERAGE, OPTIMIZER) if name.startswith(prefix)), "")
        parts[prefix][name if prefix == OPTIMIZER else name[len(prefix) :]] = value
    return Checkpoint(
        path=path,
        config=recorded_config(description["config"], source=path),
        classes=description["classes"],
        epoch=description["epoch"],
        best=description["best"],
        versions=description["versions"],
        weights=parts[""],
        average=parts[AVERAGE],
        optimizer=parts[OPTIMIZER],
        state=description.get("state"),
    )


def recorded_config(tree: Mapping[str, Any], source: object) -> Config:
    """Return the `Config` that a checkpoint or an exported file, `source`, records as a nested dict."""
    # Files from before version 0.2.0 do not have the key: their networks were evaluated without antialiasing, and the
    # accuracy that they record holds for such pixels.
    data, runtime = {"antialias": False, **tree["data"]}, tree["runtime"]
    if runtime["precision"] == "float16":  # their norms were float32
        runtime = {"norm_precision": "float32", **runtime}
    return make_config({**tree, "data": data, "runtime": runtime}, source=source)


def adapt_config(config: Config, overrides: Sequence[str], free: Sequence[str] = FREE_KEYS) -> Config:
    """Return the config of a checkpoint with overrides; an override of a key that is not in `free` is a `UserError`."""
    for override in overrides:
        key = override.partition("=")[0]
        if key not in free:
            raise UserError(
                f"{override}: cannot be changed for a trained network{did_you_mean(key, free)}; "
                f"you can change: {', '.join(free)}"
            )
    tree = config.model_dump()
    tree["runtime"] = {key: value for key, value in tree["runtime"].items() if key not in MACHINE_KEYS}
    return make_config(tree, overrides, source="checkpoint")


def open_checkpoint(path: Union[str, Path], overrides: Sequence[str]) -> OpenCheckpoint:
    """Read the checkpoint at `path`, apply `overrides` to its config, set the device and build the network.

    A missing or damaged file, or an override that a trained network does not allow, is a `UserError`.
    """
    checkpoint = load_checkpoint(path)
    config = adapt_config(checkpoint.config, overrides)
    use_device(config.runtime)
    return OpenCheckpoint(checkpoint, config, restore(checkpoint))


def restore(checkpoint: Checkpoint) -> Classifier:
    """Return the classifier of the checkpoint, in evaluation mode.

    If the run kept a moving average of the weights, the classifier has the averaged weights.
    """
    classifier = create_model(checkpoint.config.model, checkpoint.config.data, len(checkpoint.classes))
    fill(classifier.parameters_dict(), checkpoint.average or checkpoint.weights, checkpoint.path)
    return classifier.set_train(False)


def fill(parameters: Mapping[str, ms.Parameter], tensors: Mapping[str, Any], path: object) -> None:
    """Set the `parameters`, by name, to the `tensors` of the checkpoint at `path`, before any graph is compiled.

    A name or shape that differs is a `UserError`.
    """
    for parameter, value in zip(parameters.values(), matching(parameters, tensors, path)):
        parameter.set_data(ms.Tensor(value))


def matching(parameters: Mapping[str, ms.Parameter], tensors: Mapping[str, Any], path: object) -> list[np.ndarray]:
    """Return copies of the `tensors` of the checkpoint at `path`, in the order of the `parameters`.

    A name or shape that differs is a `UserError`.
    """
    for name in sorted(parameters.keys() | tensors.keys()):
        expected = parameters[name].shape if name in parameters else None
        found = tensors[name].shape if name in tensors else None
        if expected != found:
            raise UserError(
                f"{path}: the weights do not fit the network of its config: shape of {name} "
                f"(found {found}, expected {expected})"
            )
    return [tensors[name].asnumpy().copy() for name in parameters]
