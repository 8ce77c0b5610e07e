"""Reading of image files: find the files that cannot be decoded, replace them, and read ahead in threads."""

import collections
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Optional, TypeVar, cast

import numpy as np
from PIL import Image

from src.data.formats import ImageError, bitmap, decodable, decoder_takes
from src.data.samples import Samples

BAD = -1  # stands for an image that cannot be decoded
FILES_AT_ONCE = 16  # files that a thread reads in one task
Item = TypeVar("Item")
Result = TypeVar("Result")


class Files:
    """The image files of `samples`: read them for MindSpore's decoder, and remember their defects for later epochs."""

    def __init__(self, samples: Samples) -> None:
        self.paths = cast(list[str], samples.images)  # arrays and packed images need no `Files`
        self.bad = dict(samples.bad)  # index of an image: its defect
        self.needs_pillow: set[int] = set()  # indices of images that look valid, but MindSpore's decoder rejects them
        self.is_valid = np.zeros(len(samples), bool)  # valid files, which the decoder reads unchanged

    def read(self, index: int) -> Optional[bytes]:
        """Return the bytes of image `index` for MindSpore's decoder, or None if the image is bad."""
        if index in self.bad:
            return None
        path = self.paths[index]
        try:
            with open(path, "rb", buffering=0) as file:
                content = file.read()
            if self.is_valid[index]:
                return content
            usable = bitmap(content) if index in self.needs_pillow else decodable(content)
        except OSError as error:
            self.bad[index] = f"{path}: {error.strerror}"
            return None
        except ImageError as problem:
            self.bad[index] = f"{path}: {problem}"
            return None
        self.is_valid[index] = usable is content
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
    """The images of `samples` in the given order, as bytes or arrays: the source of MindSpore's GeneratorDataset.

    With `replace`, the next good image of the data set takes the place of a bad image; without it, a blank image does.
    `index_at` has the index of the image at each position, or BAD.
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
        blank = io.BytesIO()
        Image.new("RGB", (32, 32)).save(blank, "BMP")
        self.blank = np.frombuffer(blank.getvalue(), np.uint8)

    def __iter__(self) -> Iterator[tuple[np.ndarray]]:
        # These threads replace MindSpore's, which pass on one file at a time and lose a quarter of the speed.
        starts = range(0, len(self.order), FILES_AT_ONCE)
        for rows in prefetch(self.read_from, starts, self.workers):
            yield from rows

    def read_from(self, start: int) -> list[tuple[np.ndarray]]:
        """Return the rows (image,) of FILES_AT_ONCE positions from `start` on."""
        positions = range(start, min(start + FILES_AT_ONCE, len(self.order)))
        images = self.samples.images
        if isinstance(images, np.ndarray):
            return [(images[self.order[position]],) for position in positions]
        rows = []
        for position in positions:
            index, content = self.read(position)
            self.index_at[position] = BAD if content is None else index
            rows.append((self.blank if content is None else np.frombuffer(content, np.uint8),))
        return rows

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
