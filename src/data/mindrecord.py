"""Datasets packed into a few MindRecord files, for file systems that are slow with many small ones.

A folder holds them with `dataset.json`: class names, and for each split its files, the number of images, their labels
and, of arrays, their shape. An image is a record of bytes: an encoded file that MindSpore's decoder reads right, or an
array's pixels.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
from mindspore.mindrecord import FileWriter

from src.errors import UserError

DESCRIPTION = "dataset.json"
FORMAT = 1
RECORDS_AT_ONCE = 256


@dataclass(frozen=True)
class Packed:
    """Encoded images in MindRecord `files`: those of the numbers `indices` among all of them."""

    files: tuple
    indices: np.ndarray

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, chosen):
        return Packed(self.files, self.indices[chosen])

    def pipeline(self, order, workers):
        """Return MindSpore's dataset of the one column `image`, an array (1) of bytes, in the given order."""
        numbers = [int(number) for number in self.indices[order]]
        sampler = ds.SubsetSampler(numbers)
        return ds.MindDataset(list(self.files), ["image"], num_parallel_workers=workers, sampler=sampler)


def write_split(folder, split, contents, per_file):
    """Write the bytes that `contents` yields into MindRecord files of `per_file` images each; return their names."""
    names = []
    contents = iter(contents)
    while first := list(itertools.islice(contents, 1)):
        names.append(f"{split}-{len(names):03d}.mindrecord")
        # A writer of several files would deal its rows out to them, and mix up their order.
        writer = FileWriter(str(Path(folder) / names[-1]), shard_num=1)
        writer.add_schema({"image": {"type": "bytes"}}, "images")
        own = itertools.chain(first, itertools.islice(contents, per_file - 1))
        while records := [{"image": content} for content in itertools.islice(own, RECORDS_AT_ONCE)]:
            writer.write_raw_data(records)
        writer.commit()
    return names


def read_description(root):
    """Return the content of a packed dataset's `dataset.json`."""
    path = Path(root) / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"data.root: {path}: no such file; tools/make_mindrecord.py writes it") from None
    except ValueError:
        raise UserError(f"{path}: is cut short or damaged") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{path}: is not of format {FORMAT}, which this version reads")
    return description


def read_split(root, described):
    """Return the images of a split: `Packed`, or uint8 arrays (N, H, W, C) where these were packed."""
    files = tuple(str(Path(root) / name) for name in described["files"])
    for file in files:
        for needed in (file, f"{file}.db"):
            if not Path(needed).is_file():
                raise UserError(f"data.root: {needed}: no such file; tools/make_mindrecord.py wrote it")
    packed = Packed(files, np.arange(len(described["labels"])))
    if described["shape"] is None:
        return packed
    rows = packed.pipeline(packed.indices, 1).create_tuple_iterator(num_epochs=1, output_numpy=True)
    try:
        return np.stack([np.frombuffer(row.tobytes(), np.uint8).reshape(described["shape"]) for (row,) in rows])
    except (RuntimeError, ValueError):
        raise UserError(f"{files[0]}: is damaged, or does not belong to {DESCRIPTION}") from None
