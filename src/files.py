"""Write files so that no other process ever sees a half-written file."""

import contextlib
import glob
import json
import os
from collections.abc import Iterator
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
        os.chmod(partial, 0o644)  # because MindSpore writes read-only files
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    except BaseException as error:
        for remainder in path.parent.glob(f".{glob.escape(path.name)}{PARTIAL}*"):
            remainder.unlink()
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise


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
        partial.write_text(text, encoding="utf-8")


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
