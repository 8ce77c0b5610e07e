"""Data sets packed into a few MindRecord files, for file systems that are slow with many small files.

The folder of the files has a `dataset.json`: the class names and, for each split, its files, the labels of its images
and, for arrays, the shape of an image. A record is an image and its EXIF orientation. The image is bytes: an encoded
file that MindSpore's decoder reads correctly, or the pixels of an array.
"""

import errno
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Union

import mindspore.dataset as ds
import numpy as np
from mindspore.mindrecord import FileWriter

from src.config.schema import listed
from src.data.formats import reason_of, stand_in
from src.errors import UserError

DESCRIPTION = "dataset.json"
FORMAT = 2
FORMATS = (1, FORMAT)  # that can be read; in format 1, all images are upright
RECORDS_AT_ONCE = 256
BYTES_AT_ONCE = 64 * 2**20  # the records of one write; a write begins when they have this number of bytes or more


@dataclass(frozen=True)
class Packed:
    """Images in MindRecord `files`: among all images of the files, the images with the numbers `indices`.

    `turned`: some images have to be turned upright after their decoding.
    """

    files: tuple[str, ...]
    indices: np.ndarray
    turned: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, chosen: Any) -> "Packed":
        return Packed(self.files, self.indices[chosen], self.turned)

    def pipeline(self, order: np.ndarray, workers: int, unseen: int = 0) -> ds.Dataset:
        """Return MindSpore's data set of the images in the given order.

        Its first column is `image`: the bytes of an image, uint8 (number of bytes). If some images are turned, its
        second column is `orientation`: the value of the EXIF tag, int32 (1). Nobody sees the first `unseen` images; a
        `stand_in` takes the place of each.
        """
        if unseen:
            stored = self.pipeline(order, workers)

            def rows() -> Iterator[tuple[np.ndarray, ...]]:
                records = stored.create_tuple_iterator(num_epochs=1, output_numpy=True)
                for position, (image, *others) in enumerate(records):
                    content = image.tobytes()
                    yield stand_in(content) if position < unseen else np.frombuffer(content, np.uint8), *others

            return ds.GeneratorDataset(rows, stored.get_col_names(), shuffle=False)
        columns = ["image", "orientation"] if self.turned else ["image"]
        numbers = [int(number) for number in self.indices[order]]
        sampler = ds.SubsetSampler(numbers)
        return ds.MindDataset(list(self.files), columns, num_parallel_workers=workers, sampler=sampler)


def write_split(
    folder: Union[str, Path], split: str, contents: Iterable[tuple[bytes, int]], per_file: int
) -> list[str]:
    """Write images into MindRecord files of `per_file` images each; return the names of the files.

    `contents` are the bytes and the EXIF orientation of each image. If the disk cannot store a file, an `OSError` is
    raised.
    """
    names: list[str] = []
    contents = iter(contents)
    while first := list(itertools.islice(contents, 1)):
        names.append(f"{split}-{len(names):03d}.mindrecord")
        # Each file gets its own writer: a writer of several files would change the order of the images.
        path = str(Path(folder) / names[-1])
        writer = FileWriter(path, shard_num=1)
        writer.add_schema({"image": {"type": "bytes"}, "orientation": {"type": "int32"}}, "images")
        file_contents = itertools.chain(first, itertools.islice(contents, per_file - 1))
        while records := next_records(file_contents):
            stored(path, writer.write_raw_data, records)
        stored(path, writer.commit)
    return names


def stored(path: str, write: Callable[..., Any], *arguments: Any) -> None:
    """Call a method of the writer of the file at `path`; a `RuntimeError` of MindSpore becomes an `OSError`."""
    try:
        write(*arguments)
    except RuntimeError as error:
        reason = reason_of(error).rstrip(".")
        message = f"MindSpore cannot write its files: {reason}; is the disk full?"
        raise OSError(errno.EIO, message, path) from None


def next_records(contents: Iterator[tuple[bytes, int]]) -> list[dict[str, Union[bytes, int]]]:
    """Return the next records to write together; none at the end of `contents`."""
    records: list[dict[str, Union[bytes, int]]] = []
    size = 0
    while len(records) < RECORDS_AT_ONCE and size < BYTES_AT_ONCE and (pair := next(contents, None)):
        records.append({"image": pair[0], "orientation": pair[1]})
        size += len(pair[0])
    return records


def read_description(root: Union[str, Path]) -> dict[str, Any]:
    """Return the content of a packed data set's `dataset.json`."""
    path = Path(root) / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"data.root: {path}: no such file; tools/make_mindrecord.py writes it") from None
    except ValueError:
        raise UserError(f"{path}: is truncated or damaged") from None
    if not isinstance(description, dict) or description.get("format") not in FORMATS:
        found = description.get("format") if isinstance(description, dict) else None
        raise UserError(
            f"{path}: unsupported format (found {found}, expected {listed(FORMATS)}); pack the data set again with "
            "tools/make_mindrecord.py"
        )
    return description


def read_split(root: Union[str, Path], described: dict[str, Any]) -> Union[Packed, np.ndarray]:
    """Return the images of a split: `Packed` encoded files, or uint8 arrays (N, H, W, C) if arrays were packed.

    `described` is the split's part of `dataset.json`.
    """
    files = tuple(str(Path(root) / name) for name in described["files"])
    for file in files:
        for needed in (file, f"{file}.db"):
            if not Path(needed).is_file():
                raise UserError(
                    f"data.root: {needed}: no such file; pack the data set again with tools/make_mindrecord.py"
                )
    packed = Packed(files, np.arange(len(described["labels"])), described.get("turned", False))
    if described["shape"] is None:
        return packed
    rows = packed.pipeline(packed.indices, 1).create_tuple_iterator(num_epochs=1, output_numpy=True)
    try:
        return np.stack([np.frombuffer(row.tobytes(), np.uint8).reshape(described["shape"]) for (row,) in rows])
    except (RuntimeError, ValueError):
        raise UserError(f"{files[0]}: is damaged, or {DESCRIPTION} describes other images") from None
