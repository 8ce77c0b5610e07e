"""The files that a script writes: their paths are checked in one place, before the work starts.

Nothing that exists is replaced without --overwrite. With it, an input and a part of a run folder still stay.
"""

import os
import re
import stat
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import yaml

from src.errors import UserError

# The names of the files and folders of a run folder.
CONFIG, CHECKPOINTS, EVENTS = "config.yaml", "checkpoints", "events"
RUN_FILES = (CONFIG, "metrics.csv", "curves.png", "best.ckpt", "last.ckpt", "summary.json", CHECKPOINTS, EVENTS)
# The first line of the config.yaml of a run folder.
MARK = "# PocketSpore's train.py wrote this file; it marks the folder of a run, whose files --overwrite replaces.\n"
# The sections of a config.yaml from before the mark. Only train.py writes all of them, and as `yaml.safe_dump` does.
OLD_SECTIONS = {"model", "data", "augment", "train", "optimizer", "schedule", "runtime", "run"}
LONGEST_NAME = 230  # bytes; the name of a temporary file is longer, and file systems allow 255


@dataclass(frozen=True)
class Output:
    """A file, or a folder, that a script writes."""

    option: str  # the option that asks for it, such as --json
    path: Union[str, Path]
    is_folder: bool = False  # a folder is never replaced


def add_overwrite(parser: ArgumentParser) -> None:
    """Add the option --overwrite, the argument `overwrite` of `check_outputs`."""
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist already")


def output_files(option: str, path: Optional[str], *endings: str) -> list[Output]:
    """Return the `Output`s of an option: a file, whose ending is the first of `endings`, and files beside it.

    The files beside it have the same name with another ending. Without a `path` the option was not given, and the list
    is empty. A wrong ending is a `UserError`.
    """
    if path is None:
        return []
    if Path(path).suffix != endings[0]:
        raise UserError(f"{option} {path}: must end with {endings[0]}")
    return [Output(option, Path(path).with_suffix(ending)) for ending in endings]


def check_outputs(
    outputs: Sequence[Output], inputs: Mapping[str, Union[str, Path, None]], overwrite: bool = False
) -> None:
    """Raise a `UserError` if a script cannot write its outputs without harm.

    `inputs` are the files and folders that the script reads, by option or setting; None was not given. A file exists
    already and `overwrite` is not set; or two outputs are the same file; or an output is an input, is inside a folder
    of inputs, or belongs to a run folder; or its folder cannot be written.
    """
    seen: dict[Path, Output] = {}
    for output in outputs:
        path = located(output.path)
        named = f"{output.option} {output.path}"
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise UserError(
                f"{output.option}: the name is too long (found {len(os.fsencode(path.name))} bytes, "
                f"expected at most {LONGEST_NAME}): {path.name[:40]}…; choose a shorter name"
            )
        if path in seen:
            raise UserError(f"{named}: is also what {seen[path].option} writes; choose another path")
        seen[path] = output
        refuse_input(named, path, inputs)
        if (run := run_of(path)) is not None:
            raise UserError(f"{named}: is part of the run in {run}; choose another path")
        refuse_existing(named, path, output.is_folder, overwrite)
        refuse_place(named, path)


def images_named(outputs: Sequence[Output], files: Iterable[str]) -> dict[str, str]:
    """Return the image `files` that have the name of an output, as `inputs` of `check_outputs`.

    Images may be in any folder: a table names them, or a link leads to them.
    """
    names = {Path(output.path).name for output in outputs}
    return {f"image {file}": file for file in files if os.path.basename(file) in names}


def located(path: Union[str, Path]) -> Path:
    """Return the absolute path without links and `..` in its folders; a link at the path itself stays."""
    path = Path(path)
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def refuse_input(named: str, path: Path, inputs: Mapping[str, Union[str, Path, None]]) -> None:
    """Raise a `UserError` if the output at `path`, which messages call `named`, is an input or inside of a folder."""
    for option, source in inputs.items():
        if source is None or not os.path.exists(source):
            continue
        if os.path.exists(path) and os.path.samefile(path, source):
            raise UserError(f"{named}: is an input, {option}; choose another path")
        if os.path.isdir(source) and Path(os.path.realpath(source)) in path.parents:
            raise UserError(f"{named}: is in a folder of inputs ({option}: {source}); choose a path outside")


def refuse_existing(named: str, path: Path, is_folder: bool, overwrite: bool) -> None:
    """Raise a `UserError` if something at the `path` of an output stays in the way."""
    try:
        kind = os.lstat(path).st_mode
    except OSError:
        return
    if stat.S_ISREG(kind) and not is_folder:
        if not overwrite:
            raise UserError(f"{named}: exists already; choose another path, or replace the file with --overwrite")
        return
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}
    found = kinds.get(stat.S_IFMT(kind), "a device or a pipe")
    raise UserError(f"{named}: exists already, and is not replaced (found {found}); choose another path")


def refuse_place(named: str, path: Path) -> None:
    """Raise a `UserError` if the folder of an output cannot be made or written."""
    folder = next(folder for folder in path.parents if os.path.lexists(folder))
    if not folder.is_dir():
        raise UserError(f"{named}: {folder} is not a folder; choose another path")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{named}: the folder {folder} cannot be written ({error.strerror}); choose another path"
        ) from None


def run_of(path: Path) -> Optional[Path]:
    """Return the run folder that a file at `path` would be a part of, or None."""
    if path.name in RUN_FILES and is_run(path.parent):
        return path.parent
    return next(
        (folder.parent for folder in path.parents if folder.name in (CHECKPOINTS, EVENTS) and is_run(folder.parent)),
        None,
    )


def is_run(folder: Path) -> bool:
    """Return whether train.py has made `folder`: its config.yaml says so."""
    if not (folder / CONFIG).is_file():  # a pipe would keep the reader waiting
        return False
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    if text.startswith(MARK):
        return True
    if not all(re.search(f"^{name}:", text, re.MULTILINE) for name in OLD_SECTIONS):
        return False
    try:
        return yaml.safe_dump(yaml.safe_load(text), sort_keys=False) == text
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, LookupError):
        return False
