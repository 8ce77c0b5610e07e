"""The list of the files in a folder of class folders.

Listing a data set opens each file, which takes minutes for ImageNet. So the list of a folder with MANY_FILES files or
more is kept in a file under the user's cache folder. All later starts, in every process, read it from there.
"""

import contextlib
import fcntl
import hashlib
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional, Union

import numpy as np
from tqdm import tqdm

from src import __version__
from src.data.formats import NOT_REGULAR, examine
from src.files import cache_folder, make_parent, replacing

FILES_AT_ONCE = 1000
MANY_FILES = 50_000
# Seconds. A folder that changed so shortly before it was listed may change again without another time of change.
RECENT = 2
LOOP = "is a link to a folder that contains the link"


@dataclass(frozen=True)
class Listing:
    """The files of each class folder, in a fixed order; `whole` are files known to be images that are not truncated."""

    files: dict[str, list[str]]  # name of a class folder: paths of its files
    whole: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()  # lines that the user should see
    problems: dict[str, str] = field(default_factory=dict)  # path that cannot be read: the reason

    def is_good(self, file: str) -> bool:
        """Return whether a file is an image without a defect, as far as this is known without decoding."""
        return file in self.whole or examine(file) == (True, None)

    def examine(self, files: list[str]) -> tuple[list[bool], dict[int, str]]:
        """Return whether each file is meant to be an image, and the defects of bad files by their index."""
        unknown = [i for i, file in enumerate(files) if file not in self.whole]
        found, defects = examine_files([files[i] for i in unknown])
        are_images = [True] * len(files)
        for i, is_image in zip(unknown, found):
            are_images[i] = is_image
        return are_images, {unknown[i]: defect for i, defect in defects.items()}


def list_files(folder: Path, names: Sequence[str]) -> Listing:
    """Return the files in the class folders `names` of `folder`.

    The kept list of a large folder is used while neither the folder nor a folder below it has changed. Adding, removing
    and renaming a file changes its folder. Not noticed: new content of a file that keeps its name. A file that was not
    a whole image is examined again at each start, so a repaired file is found. A file that was damaged in place since
    then is found when it is first decoded (src/data/reading.py).
    """
    try:
        kept = cache_folder() / f"files-{key_of(folder)}.npz"
    except RuntimeError as error:  # the user has no home folder
        return new_listing(folder, names, None, f"{error}")
    return read_listing(kept, folder, names) or new_listing(folder, names, kept, "")


def key_of(folder: Path) -> str:
    """Return a key of a folder's path and of this version, whose rules decide which files are images."""
    return hashlib.sha256(os.fsencode(f"{os.path.abspath(folder)}\0{__version__}")).hexdigest()[:16]


def new_listing(folder: Path, names: Sequence[str], kept: Optional[Path], problem: str) -> Listing:
    """Return the files in the class folders; examine many files at once and write the list to the file `kept`.

    Without `kept`, the `problem` says why the list cannot be written.
    """
    start = time.time()
    files, below, problems = {}, [str(folder)], {}
    for name in names:
        files[name], folders, unreadable = files_below(folder / name, folder)
        below += folders
        problems.update(unreadable)
    if problems or sum(map(len, files.values())) < MANY_FILES:  # the next start looks again for what cannot be read now
        return Listing(files, problems=problems)
    with contextlib.ExitStack() as turn:
        if kept is not None:
            try:
                waited = turn.enter_context(alone(kept))
            except OSError as error:
                kept, problem = None, f"{error.filename or kept}: {error.strerror}"
            else:
                if listing := read_listing(kept, folder, names):  # Another process has made it since the first look.
                    return listing
                if waited:
                    turn.close()  # The first process has kept no list, so the others list at the same time.
        listing = examined(files)
        if kept is not None:
            try:
                write_listing(kept, listing, folder, below, start)
            except OSError as error:
                problem = f"{error.filename or kept}: {error.strerror}"
    if problem:
        note = f"{folder}: the list of files cannot be kept, so each start makes it again: {problem}"
        return replace(listing, notes=(note,))
    return listing


@contextlib.contextmanager
def alone(kept: Path) -> Iterator[bool]:
    """Let one process after the other make the list `kept`; yield whether this process had to wait.

    The lock ends with the process, so a killed process leaves no lock.
    """
    with open(make_parent(kept).with_suffix(".lock"), "wb") as lock:
        waited = False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield waited


def examined(files: dict[str, list[str]]) -> Listing:
    """Return the listing with the files that are whole images."""
    paths = [path for class_files in files.values() for path in class_files]
    are_images, bad = examine_files(paths)
    return Listing(files, frozenset(path for i, path in enumerate(paths) if are_images[i] and i not in bad))


def write_listing(kept: Path, listing: Listing, folder: Path, below: list[str], start: float) -> None:
    """Write the listing to the file `kept`, unless a folder has changed since the `start` or just before it.

    `below` are the paths of `folder` and of all folders below it.
    """
    times = times_of(below)
    if times[:, 1].max() > (start - RECENT) * 1e9:
        return
    files = [path for class_files in listing.files.values() for path in class_files]
    skipped = len(str(folder / "x")) - 1
    with replacing(kept, f".{uuid.uuid4().hex}") as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            root=packed([os.path.abspath(folder)]),
            folders=packed([path[skipped:] for path in below]),
            times=times,
            files=packed([path[skipped:] for path in files]),
            whole=np.array([path in listing.whole for path in files], bool),
        )


def read_listing(kept: Path, folder: Path, names: Sequence[str]) -> Optional[Listing]:
    """Return the listing in the file `kept`; None if it is missing, damaged or not of the present state of `folder`."""
    start = str(folder / "x")[:-1]
    files: dict[str, list[str]] = {name: [] for name in names}
    try:
        with np.load(kept, allow_pickle=False) as content:
            below = [str(folder), *(start + path for path in unpacked(content["folders"])[1:])]
            if unpacked(content["root"]) != [os.path.abspath(folder)]:
                return None
            if not np.array_equal(times_of(below), content["times"]):
                return None
            whole = content["whole"].tolist()
            for path in unpacked(content["files"]):
                files[path[: path.index(os.sep)]].append(start + path)
    except Exception:  # NumPy and zipfile raise many types of exception on damaged files.
        return None
    paths = [path for class_files in files.values() for path in class_files]
    if len(paths) != len(whole):
        return None
    return Listing(files, frozenset(path for path, is_whole in zip(paths, whole) if is_whole))


def times_of(folders: list[str]) -> np.ndarray:
    """Return when the folders were modified and changed: int64 (folders, 2), in nanoseconds.

    Nobody can set the second time, so it also tells a folder from its copy.
    """
    found = [os.stat(folder) for folder in folders]
    return np.array([[stat.st_mtime_ns, stat.st_ctime_ns] for stat in found], np.int64)


def packed(paths: list[str]) -> np.ndarray:
    """Return paths as an array of bytes, uint8 (number of bytes)."""
    return np.frombuffer(os.fsencode("\0".join(paths)), np.uint8)


def unpacked(content: np.ndarray) -> list[str]:
    """Return the paths that `packed` turned into bytes."""
    return os.fsdecode(content.tobytes()).split("\0")


def files_below(folder: Path, above: Optional[Path] = None) -> tuple[list[str], list[str], dict[str, str]]:
    """Return (files, folders, problems) of a folder and its subfolders; links are followed.

    The files are in a fixed order, and the folders include `folder`. Hidden subfolders are left out. The problems are
    the paths that cannot be read, with the reasons: among them are links that lead back to a folder around them, or to
    the folder `above` or around it.
    """
    files: list[str] = []
    below: list[str] = []
    problems: dict[str, str] = {}
    waiting = [(str(folder), [os.path.realpath(place) for place in (above, folder) if place is not None])]
    if above is not None and is_around(waiting[0][1][1], waiting[0][1][:1]):
        return files, below, {str(folder): LOOP}
    while waiting:
        path, chain = waiting.pop()  # `chain` has the real paths of this folder and of the folders that led to it
        try:
            folders, found, unreadable = content_of(path)
        except OSError as error:
            problems[path] = str(error.strerror)
            continue
        below.append(path)
        files += found
        problems.update(unreadable)
        for entry in folders:
            is_link = entry.is_symlink()
            real = os.path.realpath(entry.path) if is_link else os.path.join(chain[-1], entry.name)
            if is_link and is_around(real, chain):
                problems[entry.path] = LOOP
            else:
                waiting.append((entry.path, [*chain, real]))
    return sorted(files, key=split_path), below, problems


def content_of(folder: Union[str, Path]) -> tuple[list["os.DirEntry[str]"], list[str], dict[str, str]]:
    """Return the subfolders of a folder, the paths of its files, and the paths that cannot be read with the reasons.

    Hidden subfolders are left out.
    """
    folders, files, problems = [], [], {}
    with os.scandir(folder) as content:
        for entry in content:
            try:
                if entry.is_file():
                    files.append(entry.path)
                elif entry.name[0] == ".":
                    continue
                elif entry.is_dir():
                    folders.append(entry)
                else:
                    entry.stat()
                    problems[entry.path] = NOT_REGULAR
            except OSError as error:
                problems[entry.path] = str(error.strerror)
    return folders, files, problems


def is_around(folder: str, others: Sequence[str]) -> bool:
    """Return whether a folder is one of the `others` or contains one of them; all are real paths."""
    return any(os.path.commonpath([folder, other]) == folder for other in others)


def split_path(path: str) -> list[str]:
    """Return the parts of a path: the sort key of a file."""
    return path.split(os.sep)


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
