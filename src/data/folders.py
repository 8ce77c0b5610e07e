"""Image folders and CSV tables of images: list the files, and find the defects that can be seen without decoding."""

import csv
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Optional

import numpy as np
from tqdm import tqdm

from src.config.schema import DataConfig
from src.data.formats import examine
from src.data.samples import Samples, root_of
from src.errors import UserError

# The folders or tables that can hold a split; the first that exists is used. Training evaluates the split "eval".
PLACES = {"train": ("train",), "val": ("val",), "test": ("test", "val"), "eval": ("val", "test")}
SYNSETS = Path(__file__).with_name("imagenet.csv")
FILES_AT_ONCE = 1000
NAMES_IN_MESSAGE = 20


def load_image_folder(data: DataConfig, split: str, classes: Optional[Sequence[str]]) -> Samples:
    """Return the images in `root/train/<class>/…`, `root/val/<class>/…` and, if it exists, `root/test/<class>/…`.

    With data.val_fraction the images are in `root/<class>/…`. The hash of a file's relative path decides whether the
    file belongs to train or val.
    """
    return load_folders(data, split, classes, {})


def load_imagenet(data: DataConfig, split: str, classes: Optional[Sequence[str]]) -> Samples:
    """Return ImageNet or a part of it: an image folder whose class folders are synsets, such as `train/n01440764/…`."""
    with open(SYNSETS, newline="", encoding="utf-8") as file:
        names = {row["synset"]: f"{row['synset']} {row['name']}" for row in csv.DictReader(file)}
    samples = load_folders(data, split, classes, names)
    invalid = [name for name in samples.classes if classes is None and not re.match(r"n\d{8}( |$)", name)]
    if invalid:
        raise UserError(
            f"data.name: imagenet needs synsets as class folders (found {invalid[0]}, expected a name such as "
            "n01440764); set data.name=image_folder for other folders"
        )
    return samples


def load_folders(
    data: DataConfig, split: str, classes: Optional[Sequence[str]], class_names: dict[str, str]
) -> Samples:
    """Return the samples of a folder of class folders.

    `class_names` maps a folder's name to the name of its class, if the two differ.
    """
    folder = split_folder(data, split)
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    names = [class_names.get(name, name) for name in found]
    if not found:
        raise UserError(f"data.root: {folder} has no class folders; make a folder of images for each class")
    known = names if classes is None else list(classes)
    files: list[str] = []
    labels: list[int] = []
    for name, class_name in zip(found, names):
        if class_name not in known:
            raise UserError(f"{folder / name}: unknown class (found {class_name}, expected one of {shortened(known)})")
        class_files = [file for file in files_below(folder / name) if in_split(data, split, file, folder)]
        files += class_files
        labels += [known.index(class_name)] * len(class_files)
    are_images, bad = examine_files(files)
    samples = Samples(files, np.array(labels, np.int32), known, bad).take(np.flatnonzero(are_images))
    if classes is None and (empty := classes_without_images(samples)):
        raise UserError(f"{folder / found[names.index(empty[0])]}: has no images")
    ignored = len(files) - len(samples)
    notes = [f"{folder}: ignored files, hidden or not images: {ignored:,}"] if ignored else []
    return check_samples(data, split, samples, folder, notes)


def folder_splits(data: DataConfig) -> tuple[str, ...]:
    """Return the splits that an image folder has."""
    if data.val_fraction is not None:
        return ("train", "val")
    return tuple(name for name in ("train", "val", "test") if (root_of(data) / name).is_dir())


def csv_splits(data: DataConfig) -> tuple[str, ...]:
    """Return the splits that have a table."""
    return tuple(name for name in ("train", "val", "test") if (root_of(data) / f"{name}.csv").is_file())


def split_folder(data: DataConfig, split: str) -> Path:
    """Return the folder that contains a split's class folders."""
    root = root_of(data)
    folder = next((root / name for name in PLACES[split] if (root / name).is_dir()), None)
    if data.val_fraction is not None:
        if (root / "train").is_dir():
            raise UserError(
                "data.val_fraction: is supported for a folder without splits only "
                f"(found {root / 'train'}); leave it out"
            )
        if not root.is_dir():
            raise UserError(f"data.root: {root}: no such folder; make it with a folder of images for each class")
        return root
    if folder is None:
        raise UserError(
            f"data.root: {root / PLACES[split][0]}: no such folder; make it with a folder of images for each class, or "
            "set data.val_fraction if the splits are in one folder"
        )
    return folder


def in_split(data: DataConfig, split: str, file: str, folder: Path) -> bool:
    """Return whether a `file` in `folder` belongs to the split; without data.val_fraction each file does."""
    if data.val_fraction is None:
        return True
    relative_path = Path(file).relative_to(folder).as_posix()
    digest = hashlib.sha256(relative_path.encode("utf-8", "surrogateescape")).digest()
    held_out = int.from_bytes(digest[:8], "big") < data.val_fraction * 2**64
    return held_out == (split != "train")


def files_below(folder: Path) -> list[str]:
    """Return the files in a folder and in its subfolders, except hidden subfolders, in a fixed order."""
    files = []
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        files += [os.path.join(path, name) for name in names]
    return sorted(files, key=split_path)


def split_path(path: str) -> list[str]:
    """Return the parts of a path: the sort key of a file."""
    return path.split(os.sep)


def load_csv(data: DataConfig, split: str, classes: Optional[Sequence[str]]) -> Samples:
    """Return the images in the table `root/train.csv`, `root/val.csv` or `root/test.csv`.

    A table has the columns path, relative to `root`, and label.
    """
    root = root_of(data)
    table = next((root / f"{name}.csv" for name in PLACES[split] if (root / f"{name}.csv").is_file()), None)
    if table is None:
        raise UserError(
            f"data.root: {root / PLACES[split][0]}.csv: no such file; it should have the columns path and label"
        )
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(row.get("path") or "", row.get("label") or "", reader.line_num) for row in reader]
            header = list(reader.fieldnames or [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: is not a table in UTF-8: {error}") from None
    if not {"path", "label"} <= set(header):
        raise UserError(f"{table}: wrong columns (found {shortened(header) or 'none'}, expected path and label)")
    if not rows:
        raise UserError(f"{table}: has no images")
    for path, label, line in rows:
        if not path or not label:
            raise UserError(f"{table}: line {line} has no {'label' if path else 'path'}")
    if classes is None:
        classes = sorted({label for _, label, _ in rows}, key=number_or_text)
    known = {name: i for i, name in enumerate(classes)}
    for _, label, line in rows:
        if label not in known:
            raise UserError(
                f"{table}: line {line}: unknown class (found {label}, expected one of {shortened(list(classes))})"
            )
    files = [str(root / path) for path, _, _ in rows]
    labels = np.array([known[label] for _, label, _ in rows], np.int32)
    return check_samples(data, split, Samples(files, labels, list(classes), examine_files(files)[1]), table, [])


def number_or_text(name: str) -> tuple[int, int, str]:
    """Return a sort key that puts whole numbers, ordered by value, before other names."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def classes_without_images(samples: Samples) -> list[str]:
    """Return the names of the classes that have no image in `samples`."""
    counts = np.bincount(samples.labels, minlength=len(samples.classes))
    return [name for name, count in zip(samples.classes, counts) if not count]


def check_samples(data: DataConfig, split: str, samples: Samples, place: Path, notes: list[str]) -> Samples:
    """Return the samples with their notes.

    Raise a `UserError` if there is no good image, or if there is a bad image and data.on_bad_image is not skip.
    """
    if samples.bad and data.on_bad_image == "error":
        raise UserError(next(iter(samples.bad.values())))
    if not len(samples):
        raise UserError(f"{place}: has no images")
    if len(samples.bad) == len(samples):
        raise UserError(f"{place}: none of the {len(samples):,} images can be decoded, such as {samples.bad[0]}")
    empty = classes_without_images(samples)
    if empty and split != "train":
        notes = [*notes, f"{place}: classes without images: {shortened(empty)}"]
    return replace(samples, notes=tuple(notes))


def check_images(files: list[str]) -> None:
    """Raise a `UserError` that names the first file that is damaged or not an image."""
    are_images, bad = examine_files(files)
    for i, (file, is_image) in enumerate(zip(files, are_images)):
        if not is_image or i in bad:
            raise UserError(bad.get(i, f"{file}: is not an image"))


def examine_files(files: list[str]) -> tuple[list[bool], dict[int, str]]:
    """Return whether each file is meant to be an image, and the defects of bad files by their index."""
    parts = [files[i : i + FILES_AT_ONCE] for i in range(0, len(files), FILES_AT_ONCE)]
    bar = tqdm(total=len(files), desc="listing", unit=" files", leave=False, delay=2, disable=not sys.stderr.isatty())
    found: list[tuple[bool, Optional[str]]] = []
    with ThreadPoolExecutor() as pool, bar:
        for part in pool.map(examine_all, parts):
            found += part
            bar.update(len(part))
    return [is_image for is_image, _ in found], {i: problem for i, (_, problem) in enumerate(found) if problem}


def examine_all(files: list[str]) -> list[tuple[bool, Optional[str]]]:
    """Return `examine` of each file."""
    return [examine(file) for file in files]


def shortened(names: list[str]) -> str:
    """Return names for a message: the first NAMES_IN_MESSAGE and the number of the others."""
    others = len(names) - NAMES_IN_MESSAGE
    return ", ".join(names[:NAMES_IN_MESSAGE]) + (f" and {others:,} more" if others > 0 else "")
