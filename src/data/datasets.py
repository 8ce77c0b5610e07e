"""The table of data sets: how to load each, and which settings of the config fit it. No image is decoded here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from src.config.schema import SPLITS, DataConfig, listed
from src.data.arrays import array_splits, load_cifar, load_digits, load_fashion_mnist, load_mnist
from src.data.download import SOURCES, download
from src.data.folders import csv_splits, folder_splits, load_csv, load_image_folder, load_imagenet, shortened
from src.data.mindrecord import read_description, read_split
from src.data.samples import Samples, root_of
from src.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Dataset:
    """How to load a data set, and which settings of the config's section `data` it uses.

    `load(data, split, classes)` returns `Samples`. `classes` are the class names of a checkpoint or of the training
    split, or None.
    """

    load: Callable[[DataConfig, str, Optional[Sequence[str]]], Samples]
    splits: Callable[[DataConfig], tuple[str, ...]]  # splits(data) returns which of SPLITS the data set has
    default_root: Optional[str] = None
    needs_root: bool = True
    has_files: bool = False  # image files can be bad, so data.on_bad_image is supported
    takes_fraction: bool = False  # data.val_fraction is supported


def load_samples(data: DataConfig, split: str, classes: Optional[Sequence[str]] = None) -> Samples:
    """Return the `Samples` of a split of the data set that the config's section `data` names.

    `split` is one of SPLITS, or "eval": the split that training evaluates, which is val, or test if there is no val.
    With `classes`, the class names of a checkpoint, the labels are indices of `classes`. A class of the data set that
    is missing there is a `UserError`.
    """
    if data.download:
        download(data.name, root_of(data))
    samples = DATASETS[data.name].load(data, split, classes)
    # A network may have more outputs than the data has classes (model.classes). Their names come last in `classes`.
    if classes is not None and list(classes)[: len(samples.classes)] != samples.classes:
        raise UserError(
            f"data.name: the classes of {data.name} are not the checkpoint's (found {shortened(samples.classes)}, "
            f"expected {shortened(list(classes))})"
        )
    if len(samples.classes) == 1:
        note = f"{data.name}: has one class only, {samples.classes[0]}, so each prediction is right; add other classes"
        return replace(samples, notes=(*samples.notes, note))
    return samples


def resolve_data(data: DataConfig) -> None:
    """Set `data.root` to the data set's default; raise a `ValueError` for a setting that the data set does not use.

    The message begins with the key.
    """
    if data.name not in DATASETS:
        raise ValueError(
            f"data.name: {data.name!r} is not one of {listed(DATASETS)}{did_you_mean(data.name, DATASETS)}"
        )
    dataset = DATASETS[data.name]
    found = f"found data.name={data.name}"
    if not dataset.needs_root and data.root is not None:
        raise ValueError(f"data.root: is not used with data.name={data.name} (found {data.root!r}); leave it out")
    if data.download and data.name not in DOWNLOADABLE:
        raise ValueError(f"data.download: is supported for {listed(DOWNLOADABLE)} only ({found}); leave it out")
    if data.val_fraction is not None and not dataset.takes_fraction:
        raise ValueError(f"data.val_fraction: is supported for image folders only ({found}); leave it out")
    if data.on_bad_image != "error" and not dataset.has_files:
        raise ValueError(f"data.on_bad_image: is supported for image files only ({found}); leave it out")
    if data.root is None and dataset.needs_root:
        data.root = f"data/{data.name}" if data.download else dataset.default_root
        if data.root is None:
            raise ValueError(f"data.root: must be given with data.name={data.name}; set it to the data set's folder")


def splits_of(data: DataConfig) -> tuple[str, ...]:
    """Return which of SPLITS the data set of the config's section `data` has."""
    return DATASETS[data.name].splits(data)


def inputs_of(data: DataConfig) -> dict[str, Path]:
    """Return the tables and the folders of the data set's images, which no output may touch, by their names in errors.

    The images that a table names are not among them.
    """
    dataset = DATASETS[data.name]
    if not dataset.has_files:
        return {"data.root": root_of(data)} if data.name == "mindrecord" else {}
    if data.name != "csv" and data.val_fraction is not None:
        return {"data.root": root_of(data)}
    ending = ".csv" if data.name == "csv" else ""
    return {f"data.root, {split}": root_of(data) / f"{split}{ending}" for split in SPLITS}


def mindrecord_splits(data: DataConfig) -> tuple[str, ...]:
    """Return the splits of a packed data set."""
    return tuple(read_description(root_of(data))["splits"])


def load_mindrecord(data: DataConfig, split: str, classes: Optional[Sequence[str]]) -> Samples:
    """Return the samples of a split that tools/make_mindrecord.py has packed."""
    root = root_of(data)
    description = read_description(root)
    names, splits = description["classes"], description["splits"]
    wanted = {"eval": ("val", "test"), "test": ("test", "val")}.get(split, (split,))
    present = next((name for name in wanted if name in splits), None)
    if present is None:
        raise UserError(f"data.root: {root} has no {wanted[0]} split (found {', '.join(splits)})")
    known = names if classes is None else list(classes)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"data.root: {root}: unknown class (found {unknown[0]}, expected one of {shortened(known)})")
    label_of = np.array([known.index(name) for name in names], np.int32)  # label of each packed label
    described = splits[present]
    return Samples(read_split(root, described), label_of[described["labels"]], known)


DATASETS = {
    "digits": Dataset(load_digits, array_splits, needs_root=False),
    "mnist": Dataset(load_mnist, array_splits, default_root="data/mnist"),
    "fashion_mnist": Dataset(load_fashion_mnist, array_splits, default_root="/usr/share/datasets/fashion-mnist"),
    "cifar10": Dataset(load_cifar, array_splits, default_root="data/cifar10"),
    "cifar100": Dataset(load_cifar, array_splits, default_root="data/cifar100"),
    "image_folder": Dataset(load_image_folder, folder_splits, has_files=True, takes_fraction=True),
    "imagenet": Dataset(load_imagenet, folder_splits, has_files=True, takes_fraction=True),
    "csv": Dataset(load_csv, csv_splits, has_files=True),
    "mindrecord": Dataset(load_mindrecord, mindrecord_splits),
}
DOWNLOADABLE = tuple(SOURCES)
