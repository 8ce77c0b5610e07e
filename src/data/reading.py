"""Reading of image files: find the files that cannot be decoded, replace them, and read ahead in threads."""

import collections
import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Optional, TypeVar, cast

import numpy as np
from PIL import Image

from src.data.formats import UPRIGHT, ImageError, bitmap, decodable, decoder_takes, read_file, stand_in
from src.data.samples import Samples

BAD = -1  # stands for an image that cannot be decoded
FILES_AT_ONCE = 16  # files that a thread reads in one task
BYTES_AHEAD = 64 * 2**20  # while the files that wait have this number of bytes, threads read no further file
Item = TypeVar("Item")
Result = TypeVar("Result")


class Files:
    """The image files of `samples`: read them for MindSpore's decoder, and remember their defects for later epochs."""

    def __init__(self, samples: Samples) -> None:
        self.paths = cast(list[str], samples.images)  # arrays and packed images need no `Files`
        self.bad = dict(samples.bad)  # index of an image: its defect
        self.needs_pillow: set[int] = set()  # indices of images that look valid, but MindSpore's decoder rejects them
        self.is_valid = np.zeros(len(samples), bool)  # valid files, which the decoder reads unchanged
        self.orientations = np.zeros(len(samples), np.uint8)  # of the bytes that `read` returns; 0: not read yet

    def read(self, index: int) -> Optional[bytes]:
        """Return the bytes of image `index` for MindSpore's decoder, or None if the image is bad."""
        if index in self.bad:
            return None
        path = self.paths[index]
        try:
            content = read_file(path)
            if self.is_valid[index]:
                return content
            usable, orientation = (bitmap(content), UPRIGHT) if index in self.needs_pillow else decodable(content)
        except OSError as error:
            self.bad[index] = f"{path}: {error.strerror}"
            return None
        except ImageError as problem:
            self.bad[index] = f"{path}: {problem}"
            return None
        self.is_valid[index] = usable is content
        self.orientations[index] = orientation
        return usable

    def find_undecodable(self, selection: "Selection", start: int, operations: Sequence[Any]) -> bool:
        """Find the first image, from position `start` on, that MindSpore's decoder rejects; return whether it exists.

        Pillow decodes this image from now on. If Pillow has decoded it already, the image is bad.
        """
        for position in range(start, len(selection.order)):
            index, content = selection.read(position)
            if content is not None and not decoder_takes(content, operations[:1]):
                if index in self.needs_pillow:
                    self.bad[index] = f"{self.paths[index]}: is an image that MindSpore cannot decode"
                self.needs_pillow.add(index)
                self.is_valid[index] = False
                return True
        return False


class Selection:
    """The images of `samples` in the given order: the source of MindSpore's GeneratorDataset.

    `columns` are the names of a row's parts. A row has the image, which is an array or the bytes of a file. If files
    may have to be turned, it has their EXIF orientation too.
    With `replace`, the next good image of the data set takes the place of a bad image; without it, a blank image does.
    `index_at` has the index of the image at each position, or BAD. Nobody sees the images at the first `unseen`
    positions: files are read and checked there, but a `stand_in` is decoded.
    """

    def __init__(
        self, samples: Samples, order: np.ndarray, files: Optional[Files], replace: bool, workers: int
    ) -> None:
        self.samples = samples
        self.order = order
        self.files = files
        self.replace = replace
        self.workers = workers
        self.index_at = order.copy()
        self.unseen = 0
        # With `replace`, any image of the data set may take the place of an image in `order`.
        turns = files is not None and (files.orientations[slice(None) if replace else order] != UPRIGHT).any()
        self.columns = ["image", "orientation"] if turns else ["image"]
        blank = io.BytesIO()
        Image.new("RGB", (32, 32)).save(blank, "BMP")
        self.blank = np.frombuffer(blank.getvalue(), np.uint8)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        images = self.samples.images
        if isinstance(images, np.ndarray):
            return ((images[index],) for index in self.order)
        # These threads replace MindSpore's, which pass on one file at a time and lose a quarter of the speed.
        return iter(ReadAhead(self.row_of, len(self.order), self.workers))

    def row_of(self, position: int) -> tuple[np.ndarray, ...]:
        """Return the file at a position: its bytes, uint8 (number of bytes), and its EXIF orientation, uint8 ()."""
        index, content = self.read(position)
        self.index_at[position] = BAD if content is None else index
        orientation = UPRIGHT if content is None else cast(Files, self.files).orientations[index]
        if content is None:
            image = self.blank
        else:
            image = stand_in(content) if position < self.unseen else np.frombuffer(content, np.uint8)
        return (image, np.array(orientation, np.uint8))[: len(self.columns)]

    def read(self, position: int) -> tuple[int, Optional[bytes]]:
        """Return (index, content) of the file at a position or of the file that replaces it.

        The content is None if the file is bad and no file replaces it.
        """
        wanted = int(self.order[position])
        for index in range(wanted, wanted + (len(self.samples) if self.replace else 1)):
            content = cast(Files, self.files).read(index % len(self.samples))
            if content is not None:
                return index % len(self.samples), content
        return wanted, None


class ReadAhead:
    """The rows read(0), read(1) and so on, `count` rows in all, which `workers` threads prepare ahead.

    The threads read no further row while the rows that wait to be taken have BYTES_AHEAD bytes or more. The row that
    comes next is always read, so a file of any size passes. The first part of a row counts: uint8 (number of bytes).
    """

    def __init__(self, read: Callable[[int], tuple[np.ndarray, ...]], count: int, workers: int) -> None:
        self.read = read
        self.count = count
        self.workers = workers
        self.changed = threading.Condition()  # guards the next three
        self.waiting_bytes = 0
        self.next = 0  # the position of the row that comes next
        self.closed = False

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        ahead: collections.deque[list[Future[tuple[np.ndarray, ...]]]] = collections.deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for start in range(0, self.count, FILES_AT_ONCE):
                    ahead.append([Future() for _ in range(min(FILES_AT_ONCE, self.count - start))])
                    pool.submit(self.fill, start, ahead[-1])
                    if len(ahead) > 2 * self.workers:
                        yield from self.taken(ahead.popleft())
                while ahead:
                    yield from self.taken(ahead.popleft())
            finally:
                with self.changed:
                    self.closed = True
                    self.changed.notify_all()

    def fill(self, start: int, rows: list["Future[tuple[np.ndarray, ...]]"]) -> None:
        """Read the `rows` from position `start` on, in a thread."""
        for position, row in enumerate(rows, start):
            with self.changed:
                while not self.closed and self.waiting_bytes >= BYTES_AHEAD and position != self.next:
                    self.changed.wait()
                if self.closed:
                    return
            try:
                content = self.read(position)
            except BaseException as error:  # The thread that takes the row raises it.
                row.set_exception(error)
                return
            with self.changed:
                self.waiting_bytes += content[0].nbytes
            row.set_result(content)

    def taken(self, rows: list["Future[tuple[np.ndarray, ...]]"]) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the rows of one task as soon as they are read."""
        for row in rows:
            content = row.result()
            with self.changed:
                self.waiting_bytes -= content[0].nbytes
                self.next += 1
                self.changed.notify_all()
            yield content


def prefetch(make: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield make(item) for each item, in order; `workers` threads prepare a few items ahead."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: collections.deque[Future[Result]] = collections.deque()
        for item in items:
            ahead.append(pool.submit(make, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
