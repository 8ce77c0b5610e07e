"""Checkpoints that describe themselves: the weights, the resolved config, class names, metrics and versions."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import mindspore as ms

from src.config.load import make_config
from src.config.schema import Config
from src.errors import UserError, did_you_mean
from src.files import replacing
from src.models import create_model
from src.models.classifier import Classifier
from src.runtime.device import use_device
from src.versions import versions

# What may differ from the training when a checkpoint is evaluated or exported: where and how, not what.
FREE_KEYS = (
    "data.name",
    "data.root",
    "data.image_size",
    "data.crop_fraction",
    "data.workers",
    "data.val_fraction",
    "data.download",
    "data.on_bad_image",
    "train.batch_size",
    "runtime.device",
    "runtime.mode",
    "runtime.kernels",
)
ENTRY = "pocketspore"  # the string beside the weights, JSON
FORMAT = 1
AVERAGE, OPTIMIZER = "average.", "optimizer."  # how names in the file begin that are not the network's own


@dataclass(frozen=True)
class Checkpoint:
    """What the checkpoint file at `path` holds."""

    path: Path
    config: Config
    classes: list  # names, in the order of the logits
    epoch: int  # completed ones
    best: dict  # of the run so far: epoch, top1, top5, loss on the test split
    versions: dict
    weights: dict[str, Any]  # parameter name: Parameter
    average: dict  # the same of the weights' moving average; empty where the run kept none
    optimizer: dict  # its state; empty where the file is not for resuming
    state: Optional[dict]  # of the run, `RunState`'s; None where the file is not for resuming


class OpenCheckpoint(NamedTuple):
    """A checkpoint ready to compute: its config with overrides, and its network on the config's device."""

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
    """Write a checkpoint; the file at `path` is replaced only by a complete one that is on the disk.

    `weights`, `average` and `optimizer` are {parameter name: Parameter or array}, the optimizer's names begin with
    OPTIMIZER. A disk that refuses is an `OSError`.
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
        logging.disable(logging.CRITICAL)  # MindSpore reports a failure on stderr before it raises
        try:
            ms.save_checkpoint(tensors, str(partial), append_dict={ENTRY: json.dumps(description)}, crc_check=True)
        finally:
            logging.disable(logging.NOTSET)


def load_checkpoint(path: Union[str, Path]) -> Checkpoint:
    """Return the `Checkpoint` at `path`; raises `UserError` if it is missing, damaged or of another program."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    # MindSpore reports a bad file on stderr before it raises.
    logging.disable(logging.CRITICAL)
    try:
        weights = ms.load_checkpoint(str(path), crc_check=True)
    except (ValueError, TypeError, RuntimeError, OSError, KeyError):
        raise UserError(f"{path}: is cut short, damaged, or not a checkpoint") from None
    finally:
        logging.disable(logging.NOTSET)
    description = weights.pop(ENTRY, None)
    if not isinstance(description, str):
        raise UserError(f"{path}: was not written by PocketSpore, or is cut short: its description is missing")
    description = json.loads(description)
    if description["format"] != FORMAT:
        raise UserError(f"{path}: has format {description['format']}, this version reads {FORMAT}")
    parts = {prefix: {} for prefix in ("", AVERAGE, OPTIMIZER)}
    for name, value in weights.items():
        prefix = next((prefix for prefix in (AVERAGE, OPTIMIZER) if name.startswith(prefix)), "")
        parts[prefix][name if prefix == OPTIMIZER else name[len(prefix) :]] = value
    return Checkpoint(
        path=path,
        config=make_config(description["config"], source=path),
        classes=description["classes"],
        epoch=description["epoch"],
        best=description["best"],
        versions=description["versions"],
        weights=parts[""],
        average=parts[AVERAGE],
        optimizer=parts[OPTIMIZER],
        state=description.get("state"),
    )


def adapt_config(config: Config, overrides: Sequence[str], free: Sequence[str] = FREE_KEYS) -> Config:
    """Return a checkpoint's config with overrides; a key that is not among the `free` ones is a `UserError`."""
    for override in overrides:
        key = override.partition("=")[0]
        if key not in free:
            raise UserError(
                f"{override}: cannot be changed for a trained network{did_you_mean(key, free)}; "
                f"can be: {', '.join(free)}"
            )
    return make_config(config.model_dump(), overrides, source="checkpoint")


def open_checkpoint(path: Union[str, Path], overrides: Sequence[str]) -> OpenCheckpoint:
    """Read the checkpoint at `path`, apply `overrides` to its config, set the device and build the network.

    A file that is missing or damaged, and an override that a trained network does not allow, are a `UserError`.
    """
    checkpoint = load_checkpoint(path)
    config = adapt_config(checkpoint.config, overrides)
    use_device(config.runtime)
    return OpenCheckpoint(checkpoint, config, restore(checkpoint))


def restore(checkpoint: Checkpoint) -> Classifier:
    """Return the checkpoint's classifier in evaluation mode.

    Its weights are their moving average where the run kept a moving average.
    """
    classifier = create_model(checkpoint.config.model, checkpoint.config.data, len(checkpoint.classes))
    fill(classifier.parameters_dict(), checkpoint.average or checkpoint.weights, checkpoint.path)
    return classifier.set_train(False)


def fill(parameters: Mapping[str, ms.Parameter], tensors: Mapping[str, Any], path: object) -> None:
    """Give the `parameters`, by name, the values of `tensors`, which the checkpoint at `path` holds.

    Names or shapes that differ are a `UserError`.
    """
    for name in sorted(parameters.keys() | tensors.keys()):
        expected = parameters[name].shape if name in parameters else None
        found = tensors[name].shape if name in tensors else None
        if expected != found:
            raise UserError(
                f"{path}: is of another network than its config says: {name} has shape {found}, not {expected}"
            )
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(tensors[name].asnumpy().copy()))
