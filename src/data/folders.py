"""Image folders and CSV tables of images: their splits, classes and labels."""

import csv
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

import numpy as np

from src.config.schema import DataConfig, resolved
from src.data.listing import Listing, content_of, examine_files, list_files
from src.data.samples import Samples, root_of
from src.errors import UserError

# The folders or tables that can hold a split; the first that exists is used. Training evaluates the split "eval".
PLACES = {"train": ("train",), "val": ("val",), "test": ("test", "val"), "eval": ("val", "test")}
SYNSETS = Path(__file__).with_name("imagenet.csv")
NAMES_IN_MESSAGE = 20
LONGEST_LABEL = 255  # characters of a label in a table; the names of class folders are not longer
PROBLEMS_IN_MESSAGE = 5


def load_image_folder(data: DataConfig, split: str, classes: Optional[Sequence[str]]) -> Samples:
    """Return the images in `root/train/<class>/…`, `root/val/<class>/…` and, if it exists, `root/test/<class>/…`.

    With data.val_fraction the images are in `root/<class>/…`, and `held_out` decides which of them are in val.
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
    folders, _, unreadable = content_of(folder)
    found = sorted(entry.name for entry in folders)
    names = [class_names.get(name, name) for name in (name_of(folder, entry) for entry in found)]
    if not found:
        raise UserError(f"data.root: {folder} has no class folders; make a folder of images for each class")
    known = names if classes is None else list(classes)
    listing = list_files(folder, found)
    problems = {**unreadable, **listing.problems}
    has_class = any(str(folder / name) in problems for name in found)
    if has_class or (problems and data.on_bad_image == "error"):
        skip = "" if has_class else ", or set data.on_bad_image=skip"
        raise UserError(f"data.root: {unreadable_text(problems)}; make them readable or remove them{skip}")
    held = None if data.val_fraction is None else held_out(data, folder, listing)
    files: list[str] = []
    labels: list[int] = []
    for name, class_name in zip(found, names):
        if class_name not in known:
            raise UserError(f"{folder / name}: unknown class (found {class_name}, expected one of {shortened(known)})")
        class_files = listing.files[name]
        if held is not None:
            class_files = [file for file in class_files if (file in held) == (split != "train")]
        files += class_files
        labels += [known.index(class_name)] * len(class_files)
    are_images, bad = listing.examine(files)
    samples = Samples(files, np.array(labels, np.int32), known, bad, unreadable=problems)
    samples = samples.take(np.flatnonzero(are_images))
    if classes is None and (empty := classes_without_images(samples)):
        raise UserError(f"{folder / found[names.index(empty[0])]}: has no images")
    ignored = len(files) - len(samples)
    notes = [f"{folder}: ignored files, hidden or not images: {ignored:,}"] if ignored else []
    notes += [f"left out (data.on_bad_image): {unreadable_text(problems)}"] if problems else []
    notes += listing.notes
    return check_samples(data, split, samples, folder, notes)


def name_of(folder: Path, entry: str) -> str:
    """Return the name of a class folder as UTF-8 text, whatever the encoding of this process is."""
    try:
        return os.fsencode(entry).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{folder}: has a class folder whose name is not UTF-8 (found {os.fsencode(entry)!r}); rename it"
        ) from None


def unreadable_text(problems: dict[str, str]) -> str:
    """Return how many paths cannot be read, and some of them with the reasons; `problems` are {path: reason}."""
    named = [f"{path}: {reason}" for path, reason in sorted(problems.items())[:PROBLEMS_IN_MESSAGE]]
    more = f" and {len(problems) - len(named):,} more" if len(problems) > len(named) else ""
    return f"found folders or files that cannot be read: {', '.join(named)}{more}"


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


def held_out(data: DataConfig, folder: Path, listing: Listing) -> set[str]:
    """Return the files of the class folders in `folder` that data.val_fraction puts into val.

    These are the files with a hash below the fraction. In each class, the good image with the highest hash stays in
    train, and the good image with the lowest hash of the others is in val. So each class with two images is in both
    splits, and new files move at most one old file of a class. With data.group, the files of a group share a hash, also
    across classes. Then a class may have no group left for val.

    Raise a `UserError` if data.group matches no file, or if val is empty.
    """
    digests = {
        file: digest_of(data, file, folder, folder / name) for name, files in listing.files.items() for file in files
    }
    if data.group is not None and not any(is_grouped for _, is_grouped in digests.values()):
        raise UserError(
            f"data.group: matches no file in {folder} (found {data.group!r}, expected a pattern that occurs in paths "
            "below a class folder); change it or leave it out"
        )
    hashes = {file: digest for file, (digest, _) in digests.items()}
    ranked = [sorted(files, key=lambda file: hashes[file]) for files in listing.files.values()]
    highest = {hashes[file] for files in ranked for file in itertools.islice(filter(listing.is_good, files[::-1]), 1)}
    lowest: set[bytes] = set()
    for files in ranked:
        others = (file for file in files if hashes[file] not in highest and listing.is_good(file))
        lowest.update(hashes[file] for file in itertools.islice(others, 1))
    limit = int(resolved(data.val_fraction) * 2**64).to_bytes(8, "big")
    if not lowest and data.group is None:
        raise UserError(f"data.val_fraction: val is empty, because no class in {folder} has two images; add images")
    if not lowest:
        raise UserError(
            f"data.group: val is empty, because no class in {folder} has a second group (found {data.group!r}); change "
            "the pattern"
        )
    return {file for file, digest in hashes.items() if (digest < limit or digest in lowest) and digest not in highest}


def digest_of(data: DataConfig, file: str, folder: Path, class_folder: Path) -> tuple[bytes, bool]:
    """Return (hash of a file for the split, whether data.group matches its path inside the class folder).

    The hash is the first 8 bytes of the SHA-256 of the path inside `folder`, or of the text that data.group matches.
    """
    text, is_grouped = Path(file).relative_to(folder).as_posix(), False
    match = data.group and re.search(data.group, Path(file).relative_to(class_folder).as_posix())
    if match and (group := (match[1] if match.re.groups else None) or match[0]):
        text, is_grouped = group, True
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], is_grouped


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
        if "\0" in path + label:
            raise UserError(f"{table}: line {line} has the character NUL; remove it")
        if len(label) > LONGEST_LABEL:
            raise UserError(
                f"{table}: line {line}: the label is too long (found {len(label):,} characters, expected at most "
                f"{LONGEST_LABEL})"
            )
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
    """Return a sort key that puts whole numbers, ordered by value, before other names; 07 and 7 have two keys."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


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


def shortened(names: list[str]) -> str:
    """Return names for a message: the first NAMES_IN_MESSAGE and the number of the others."""
    others = len(names) - NAMES_IN_MESSAGE
    return ", ".join(names[:NAMES_IN_MESSAGE]) + (f" and {others:,} more" if others > 0 else "")
