"""Writing files so that none is ever seen half written."""

import contextlib
import glob
import json
import os
from pathlib import Path

PARTIAL = ".partial"


def make_parent(path):
    """Make the folder of the file at `path` where there is none, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def replacing(path, suffix=""):
    """Yield the path of a file to write; when that is done it is flushed to the disk and takes the place of `path`.

    Where writing fails nothing is left of it, and the file at `path` stays; a process that is killed leaves a hidden
    file with PARTIAL in its name. `suffix` ends the temporary file's name.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{PARTIAL}{suffix}")
    try:
        yield partial
        os.chmod(partial, 0o644)  # MindSpore leaves its files read-only
        flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    except BaseException as error:
        for left_behind in path.parent.glob(f".{glob.escape(path.name)}{PARTIAL}*"):
            left_behind.unlink()
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise


def flush(path):
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(text, path):
    """Write UTF-8 text to `path`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(content, path):
    """Write `content` as indented JSON to `path`, making its folder."""
    write_text(json.dumps(content, indent=2) + "\n", make_parent(path))


def link(source, path):
    """Let `path` be another name of the file `source`, or a copy where the file system has no links."""
    with replacing(path) as partial:
        try:
            os.link(source, partial)
        except OSError:
            partial.write_bytes(Path(source).read_bytes())
