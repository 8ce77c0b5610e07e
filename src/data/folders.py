"""Image files in folders or tables: listing them, and what listing can see of their defects."""

import csv
import hashlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.data.formats import examine
from src.data.samples import Samples
from src.errors import UserError

# Which folder or table a split is in, the first that is there; "eval" is what training evaluates on.
PLACES = {"train": ("train",), "val": ("val",), "test": ("test", "val"), "eval": ("val", "test")}
SYNSETS = Path(__file__).with_name("imagenet.csv")
FILES_AT_ONCE = 1000


def load_image_folder(data, split, classes):
    """Photos in `root/train/<class>/…`, `root/val/<class>/…` and perhaps `root/test/<class>/…`.

    With data.val_fraction they lie in `root/<class>/…`, and a hash of its relative path says which split has a file.
    """
    return load_folders(data, split, classes, {})


def load_imagenet(data, split, classes):
    """ImageNet, or a part of it: an image folder with synsets as class folders, such as `train/n01440764/…`."""
    with open(SYNSETS, newline="", encoding="utf-8") as file:
        names = {row["synset"]: f"{row['synset']} {row['name']}" for row in csv.DictReader(file)}
    samples = load_folders(data, split, classes, names)
    strange = [name for name in samples.classes if classes is None and not re.match(r"n\d{8}( |$)", name)]
    if strange:
        raise UserError(f"data.name: imagenet: {strange[0]} is not a synset such as n01440764; use image_folder")
    return samples


def load_folders(data, split, classes, readable):
    """Return the samples of a folder of class folders; `readable` has names for those that need another one."""
    folder = split_folder(data, split)
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    names = [readable.get(name, name) for name in found]
    if not found:
        raise UserError(f"data.root: {folder} has no class folders; each class is a folder of images")
    known = names if classes is None else list(classes)
    files, labels = [], []
    for name, class_name in zip(found, names):
        if class_name not in known:
            raise UserError(f"{folder / name}: the class {class_name} is not among those trained: {listed(known)}")
        here = [file for file in files_below(folder / name) if in_split(data, split, file, folder)]
        files += here
        labels += [known.index(class_name)] * len(here)
    are_images, bad = examined(files)
    samples = Samples(files, np.array(labels, np.int32), known, bad).take(np.flatnonzero(are_images))
    if classes is None and (empty := classes_without_images(samples)):
        raise UserError(f"{folder / found[names.index(empty[0])]}: has no images")
    ignored = len(files) - len(samples)
    return finished(
        data, split, samples, folder, [f"{folder}: files ignored, hidden or no images: {ignored:,}"] * bool(ignored)
    )


def folder_splits(data):
    """Return which splits an image folder has."""
    if data.val_fraction is not None:
        return ("train", "val")
    return tuple(name for name in ("train", "val", "test") if (Path(data.root) / name).is_dir())


def csv_splits(data):
    """Return which splits have a table."""
    return tuple(name for name in ("train", "val", "test") if (Path(data.root) / f"{name}.csv").is_file())


def split_folder(data, split):
    """Return the folder that holds a split's class folders."""
    root = Path(data.root)
    folder = next((root / name for name in PLACES[split] if (root / name).is_dir()), None)
    if data.val_fraction is not None:
        if (root / "train").is_dir():
            raise UserError(f"data.val_fraction: {data.val_fraction} is for a folder without splits; {root} has train")
        if not root.is_dir():
            raise UserError(f"data.root: {root}: no such folder; it should hold a folder of images for each class")
        return root
    if folder is None:
        raise UserError(
            f"data.root: {root / PLACES[split][0]}: no such folder; it should hold a folder of images for each class "
            "(one folder for all splits needs data.val_fraction)"
        )
    return folder


def in_split(data, split, file, folder):
    """Tell whether a file in `folder`, which has no splits, belongs to this one: always so where there are splits."""
    if data.val_fraction is None:
        return True
    relative_path = Path(file).relative_to(folder).as_posix()
    digest = hashlib.sha256(relative_path.encode("utf-8", "surrogateescape")).digest()
    held_out = int.from_bytes(digest[:8], "big") < data.val_fraction * 2**64
    return held_out == (split != "train")


def files_below(folder):
    """Return the files in a folder and those below it, without hidden folders, in a fixed order."""
    files = []
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        files += [os.path.join(path, name) for name in names]
    return sorted(files, key=split_path)


def split_path(path):
    return path.split(os.sep)


def load_csv(data, split, classes):
    """Tables `root/train.csv`, `root/val.csv`, `root/test.csv` with columns path, relative to `root`, and label."""
    root = Path(data.root)
    table = next((root / f"{name}.csv" for name in PLACES[split] if (root / f"{name}.csv").is_file()), None)
    if table is None:
        raise UserError(
            f"data.root: {root / PLACES[split][0]}.csv: no such file; it should have columns path and label"
        )
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(row.get("path"), row.get("label"), reader.line_num) for row in reader]
            header = reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: is not a table in UTF-8: {error}") from None
    if not {"path", "label"} <= set(header):
        raise UserError(f"{table}: has the columns {listed(header) or 'none'}; it needs path and label")
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
            raise UserError(f"{table}: line {line}: the class {label} is not among those trained: {listed(classes)}")
    files = [str(root / path) for path, _, _ in rows]
    labels = np.array([known[label] for _, label, _ in rows], np.int32)
    return finished(data, split, Samples(files, labels, list(classes), examined(files)[1]), table, [])


def number_or_text(name):
    """Sort whole numbers by value, before other names."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def classes_without_images(samples):
    counts = np.bincount(samples.labels, minlength=len(samples.classes))
    return [name for name, count in zip(samples.classes, counts) if not count]


def finished(data, split, samples, place, notes):
    """Return samples with notes; no good image, or a bad one that data.on_bad_image does not skip, is a `UserError`."""
    if samples.bad and data.on_bad_image == "error":
        raise UserError(next(iter(samples.bad.values())))
    if not len(samples):
        raise UserError(f"{place}: has no images")
    if len(samples.bad) == len(samples):
        raise UserError(f"{place}: none of the {len(samples):,} images can be decoded, such as {samples.bad[0]}")
    empty = classes_without_images(samples)
    if empty and split != "train":
        notes = [*notes, f"{place}: has no images of {listed(empty)}"]
    return replace(samples, notes=tuple(notes))


def check_images(files):
    """Raise a `UserError` that names the first file that is no image, or is cut short."""
    are_images, bad = examined(files)
    for i, (file, is_image) in enumerate(zip(files, are_images)):
        if not is_image or i in bad:
            raise UserError(bad.get(i, f"{file}: is no image"))


def examined(files):
    """Return for each file whether it is meant to be an image, and what is wrong with files, by index."""
    parts = [files[i : i + FILES_AT_ONCE] for i in range(0, len(files), FILES_AT_ONCE)]
    bar = tqdm(total=len(files), desc="listing", unit=" files", leave=False, delay=2, disable=not sys.stderr.isatty())
    found = []
    with ThreadPoolExecutor() as pool, bar:
        for part in pool.map(examine_all, parts):
            found += part
            bar.update(len(part))
    return [is_image for is_image, _ in found], {i: problem for i, (_, problem) in enumerate(found) if problem}


def examine_all(files):
    return [examine(file) for file in files]


def listed(names):
    """Return names for a message, cut where they would fill the screen."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")
