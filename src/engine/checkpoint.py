"""Checkpoints that describe themselves: the weights, the resolved config, class names, metrics and versions."""

import json
import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np

from src.config import Config, make_config
from src.errors import UserError, did_you_mean
from src.models import create_model

# What may differ from the training when a checkpoint is evaluated or exported: where and how, not what.
FREE_KEYS = (
    "data.name",
    "data.root",
    "data.image_size",
    "data.crop_fraction",
    "data.workers",
    "train.batch_size",
    "runtime.device",
    "runtime.mode",
    "runtime.kernels",
)
ENTRY = "pocketspore"  # the string beside the weights, JSON
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    config: Config
    classes: list  # names, in the order of the logits
    epoch: int  # completed ones
    best: dict  # of the run so far: epoch, top1, top5, loss on the test split
    versions: dict
    weights: dict  # parameter name: Parameter


def save_checkpoint(path, classifier, config, classes, epoch, best):
    """Write a checkpoint; the file at `path` is replaced only by a complete one."""
    path = Path(path)
    description = {
        "format": FORMAT,
        "config": config.model_dump(),
        "classes": classes,
        "epoch": epoch,
        "best": best,
        "versions": versions(),
    }
    partial = path.with_name(f".{path.stem}.partial.ckpt")
    ms.save_checkpoint(classifier, str(partial), append_dict={ENTRY: json.dumps(description)}, crc_check=True)
    os.chmod(partial, 0o644)  # MindSpore leaves it read-only
    os.replace(partial, path)


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
    return Checkpoint(
        config=make_config(description["config"], source=path),
        classes=description["classes"],
        epoch=description["epoch"],
        best=description["best"],
        versions=description["versions"],
        weights=weights,
    )


def adapt_config(config, overrides):
    """Return a checkpoint's config with overrides; a key that is fixed by the training is a `UserError`."""
    for override in overrides:
        key = override.partition("=")[0]
        if key not in FREE_KEYS:
            raise UserError(
                f"{override}: cannot be changed for a checkpoint{did_you_mean(key, FREE_KEYS)}; "
                f"can be: {', '.join(FREE_KEYS)}"
            )
    return make_config(config.model_dump(), overrides, source="checkpoint")


def restore(checkpoint, path):
    """Return the checkpoint's classifier with its weights, in evaluation mode; `path` names the file in errors."""
    classifier = create_model(checkpoint.config.model, checkpoint.config.data, len(checkpoint.classes))
    parameters = classifier.parameters_dict()
    for name in sorted(parameters.keys() | checkpoint.weights.keys()):
        expected = parameters[name].shape if name in parameters else None
        found = checkpoint.weights[name].shape if name in checkpoint.weights else None
        if expected != found:
            raise UserError(
                f"{path}: is of another network than its config says: {name} has shape {found}, not {expected}"
            )
        parameters[name].set_data(checkpoint.weights[name])
    return classifier.set_train(False)


def versions():
    """Return the versions of what made a file."""
    return {"mindspore": ms.__version__, "numpy": np.__version__, "python": platform.python_version()}
