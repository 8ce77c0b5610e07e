"""The datasets: where their images are, what is in them, and what is wrong with them. No image is decoded here."""

from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np

from src.config.schema import DataConfig, listed
from src.data.arrays import array_splits, load_cifar, load_digits, load_fashion_mnist, load_mnist
from src.data.download import SOURCES, download
from src.data.folders import csv_splits, folder_splits, load_csv, load_image_folder, load_imagenet
from src.data.mindrecord import read_description, read_split
from src.data.samples import Samples
from src.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Dataset:
    """`load(data, split, classes)` returns `Samples`; `data` is the config's section.

    `classes` are those of a checkpoint or of the training split, or None.
    """

    load: Callable
    splits: Callable  # splits(data): which of SPLITS it has
    default_root: Optional[str] = None
    needs_root: bool = True
    has_files: bool = False  # that may be bad: data.on_bad_image
    takes_fraction: bool = False  # data.val_fraction


def load_samples(data, split, classes=None):
    """Return the `Samples` of a split of the dataset that the config's section `data` names.

    `split` is one of SPLITS, or "eval": what training evaluates on, val where the set has one and else test. With
    `classes`, the class names of a checkpoint, labels index into those; a class that they lack is a `UserError`.
    """
    if data.download:
        download(data.name, data.root)
    samples = DATASETS[data.name].load(data, split, classes)
    # A network may have more outputs than the data has classes (model.classes); those have names at the end.
    if classes is not None and list(classes)[: len(samples.classes)] != samples.classes:
        raise UserError(f"data.name: {data.name} has other classes than the checkpoint: {', '.join(samples.classes)}")
    return samples


def resolve_data(data: DataConfig) -> None:
    """Give `data.root` the data set's default; a setting that does not fit the set is a `ValueError` with its key."""
    if data.name not in DATASETS:
        raise ValueError(
            f"data.name: {data.name!r} is not one of {listed(DATASETS)}{did_you_mean(data.name, DATASETS)}"
        )
    dataset = DATASETS[data.name]
    if not dataset.needs_root and data.root is not None:
        raise ValueError(f"data.root: {data.root!r} is not used: {data.name} comes with scikit-learn, leave it out")
    if data.download and data.name not in DOWNLOADABLE:
        raise ValueError(f"data.download: true is for {listed(DOWNLOADABLE)} only, not {data.name}")
    if data.val_fraction is not None and not dataset.takes_fraction:
        raise ValueError(f"data.val_fraction: {data.val_fraction} is for image folders only, not {data.name}")
    if data.on_bad_image != "error" and not dataset.has_files:
        raise ValueError(f"data.on_bad_image: {data.on_bad_image} is for image files only, not {data.name}")
    if data.root is None and dataset.needs_root:
        data.root = f"data/{data.name}" if data.download else dataset.default_root
        if data.root is None:
            raise ValueError(f"data.root: the folder of {data.name} must be given")


def splits_of(data):
    """Return which of SPLITS the dataset of the config's section `data` has."""
    return DATASETS[data.name].splits(data)


def mindrecord_splits(data):
    return tuple(read_description(data.root)["splits"])


def load_mindrecord(data, split, classes):
    """What tools/make_mindrecord.py packed."""
    description = read_description(data.root)
    wanted = {"eval": ("val", "test"), "test": ("test", "val")}.get(split, (split,))
    split = next((name for name in wanted if name in description["splits"]), None)
    if split is None:
        raise UserError(f"data.root: {data.root} has no {wanted[0]} images, only {', '.join(description['splits'])}")
    described, names = description["splits"][split], description["classes"]
    classes = names if classes is None else list(classes)
    lacking = [name for name in names if name not in classes]
    if lacking:
        raise UserError(f"data.root: {data.root}: the class {lacking[0]} is not among those trained")
    own = np.array([classes.index(name) for name in names], np.int32)
    return Samples(read_split(data.root, described), own[described["labels"]], classes)


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
