"""Checkpoints that describe themselves: the weights, the resolved config, class names, metrics and versions."""

import json
import logging
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import mindspore as ms
import numpy as np

from src.config import Config, make_config
from src.engine.files import replacing
from src.errors import UserError, did_you_mean
from src.models import create_model

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
    """What a checkpoint file holds."""

    config: Config
    classes: list  # names, in the order of the logits
    epoch: int  # completed ones
    best: dict  # of the run so far: epoch, top1, top5, loss on the test split
    versions: dict
    weights: dict  # parameter name: Parameter
    average: dict  # the same of the weights' moving average; empty where the run kept none
    optimizer: dict  # its state; empty where the file is not for resuming
    state: Optional[dict]  # of the run, `RunState`'s; None where the file is not for resuming


def save_checkpoint(path, weights, config, classes, epoch, best, average=None, optimizer=None, state=None):
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


def load_checkpoint(path):
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


def adapt_config(config, overrides, free=FREE_KEYS):
    """Return a checkpoint's config with overrides; a key that is not among the `free` ones is a `UserError`."""
    for override in overrides:
        key = override.partition("=")[0]
        if key not in free:
            raise UserError(
                f"{override}: cannot be changed for a trained network{did_you_mean(key, free)}; "
                f"can be: {', '.join(free)}"
            )
    return make_config(config.model_dump(), overrides, source="checkpoint")


def restore(checkpoint, path):
    """Return the checkpoint's classifier in evaluation mode; `path` names the file in errors.

    Its weights are their moving average where the run kept one.
    """
    classifier = create_model(checkpoint.config.model, checkpoint.config.data, len(checkpoint.classes))
    fill(classifier.get_parameters(), checkpoint.average or checkpoint.weights, path)
    return classifier.set_train(False)


def fill(parameters, tensors, path):
    """Give the `parameters` the values that a checkpoint at `path` has for them; what does not fit is a `UserError`."""
    parameters = {parameter.name: parameter for parameter in parameters}
    for name in sorted(parameters.keys() | tensors.keys()):
        expected = parameters[name].shape if name in parameters else None
        found = tensors[name].shape if name in tensors else None
        if expected != found:
            raise UserError(
                f"{path}: is of another network than its config says: {name} has shape {found}, not {expected}"
            )
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(tensors[name].asnumpy().copy()))


def versions():
    """Return the versions of what made a file."""
    return {"mindspore": ms.__version__, "numpy": np.__version__, "python": platform.python_version()}
