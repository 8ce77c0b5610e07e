"""Write files so that no other process ever sees a half-written file."""

import contextlib
import glob
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union

PARTIAL = ".partial"  # part of the name of a file that is still being written


def cache_folder() -> Path:
    """Return the folder of files that save time and can be made again; raise a `RuntimeError` without a home folder.

    A relative XDG_CACHE_HOME is ignored, as the XDG Base Directory Specification asks.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "pocketspore"


def make_parent(path: Union[str, Path]) -> Path:
    """Create the folder of the file at `path` if it is missing, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def replacing(path: Union[str, Path], suffix: str = "") -> Iterator[Path]:
    """Yield the path of a temporary file to write; afterwards, flush it to the disk and rename it to `path`.

    If writing fails, the temporary file is removed, and an existing file at `path` does not change. A killed process
    leaves a hidden file with PARTIAL in its name. The name of the temporary file ends with `suffix`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{PARTIAL}{suffix}")
    try:
        yield partial
        publish({partial: path})
    except BaseException as error:
        for remainder in path.parent.glob(f".{glob.escape(path.name)}{PARTIAL}*"):
            remainder.unlink()
        if isinstance(error, OSError) and (not error.filename or PARTIAL in str(error.filename)):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def naming(path: Path, prefix: str) -> Iterator[None]:
    """Let an `OSError` about a temporary file name `path`; names of temporary files beside it begin with `prefix`."""
    try:
        yield
    except OSError as error:
        if not error.filename or str(error.filename).startswith(str(path.with_name(prefix))):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def making_folder(path: Union[str, Path]) -> Iterator[Path]:
    """Yield a temporary folder to fill; afterwards, rename it to `path`, which must not exist.

    If filling it fails, the temporary folder is removed.
    """
    path = make_parent(path)
    prefix = f".{path.name}-"
    with naming(path, prefix), tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as partial:
        yield Path(partial)
        for file in (Path(partial), *Path(partial).rglob("*")):
            apply_umask(file)
        os.rename(partial, path)
        os.mkdir(partial)  # TemporaryDirectory needs a folder to remove


def publish(names: Mapping[Path, Path]) -> None:
    """Give complete temporary files their final names, {temporary: final}, after all of them are on the disk."""
    for partial in names:
        flush(partial)
        apply_umask(partial)  # afterwards, because it may take away the permission to read
    for partial, path in names.items():
        os.replace(partial, path)
    for folder in {path.parent for path in names.values()}:
        flush(folder)


def apply_umask(path: Path) -> None:
    """Give a file or a folder the permissions of a new file; MindSpore and `tempfile` make private files."""
    mask = os.umask(0o077)  # the only way to read it is to set it
    os.umask(mask)
    os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(text: str, path: Union[str, Path]) -> None:
    """Write UTF-8 text to `path`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(content: Any, path: Union[str, Path]) -> None:
    """Write `content` as indented JSON to `path`; create the folder if it is missing."""
    write_text(json.dumps(content, indent=2) + "\n", make_parent(path))


def link(source: Union[str, Path], path: Union[str, Path]) -> None:
    """Make `path` a hard link to the file `source`, or a copy if the file system does not support links."""
    with replacing(path) as partial:
        try:
            os.link(source, partial)
        except OSError:
            partial.write_bytes(Path(source).read_bytes())
