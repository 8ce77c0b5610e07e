"""Writing results."""

import json
from pathlib import Path


def make_parent(path):
    """Make the folder of the file at `path` where there is none, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_json(content, path):
    """Write `content` as indented JSON to `path`, making its folder."""
    make_parent(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
