"""Reading image files: what decodes and what does not, which file stands at which position, and reading ahead."""

import collections
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from src.data.formats import ImageError, bitmap, decodable, decoder_takes

BAD = -1  # stands where an image that cannot be shown was to be
FILES_AT_ONCE = 16  # read by a thread in one go


class Files:
    """Reads image files for MindSpore's decoder, and remembers from epoch to epoch what it found out about them."""

    def __init__(self, samples):
        self.samples = samples
        self.bad = dict(samples.bad)  # index: what is wrong
        self.refused = set()  # of images that look sound, but that MindSpore's decoder refuses
        self.sound = np.zeros(len(samples), bool)  # can be decoded as they are

    def read(self, index):
        """Return the bytes of image `index` as the decoder needs them, or None of a bad one."""
        if index in self.bad:
            return None
        path = self.samples.images[index]
        try:
            with open(path, "rb", buffering=0) as file:
                content = file.read()
            if self.sound[index]:
                return content
            usable = bitmap(content) if index in self.refused else decodable(content)
        except OSError as error:
            self.bad[index] = f"{path}: {error.strerror}"
            return None
        except ImageError as problem:
            self.bad[index] = f"{path}: {problem}"
            return None
        self.sound[index] = usable is content
        return usable

    def find_refused(self, selection, start, operations):
        """Find the first image from position `start` on that MindSpore's decoder refuses; tell whether there is one.

        It goes through Pillow from then on, and is bad if that does not help.
        """
        for position in range(start, len(selection.order)):
            index, content = selection.read(position)
            if content is not None and not decoder_takes(content, operations[:1]):
                if index in self.refused:
                    self.bad[index] = f"{self.samples.images[index]}: is an image that MindSpore cannot decode"
                self.refused.add(index)
                self.sound[index] = False
                return True
        return False


class Selection:
    """What MindSpore's GeneratorDataset reads: images, as bytes or arrays, of `samples` in the given order.

    A bad file is replaced by the next good one of the set, or with `replace` false by a blank one; `shown` says which
    image has come at each position, or BAD.
    """

    def __init__(self, samples, order, files, replace, workers):
        self.samples = samples
        self.order = order
        self.files = files
        self.replace = replace
        self.workers = workers
        self.shown = order.copy()
        blank = io.BytesIO()
        Image.new("RGB", (32, 32)).save(blank, "BMP")
        self.blank = np.frombuffer(blank.getvalue(), np.uint8)

    def __iter__(self):
        # Threads of our own: MindSpore's would hand over file by file, which costs a quarter of the speed.
        starts = range(0, len(self.order), FILES_AT_ONCE)
        for rows in made_ahead(self.read_from, starts, self.workers):
            yield from rows

    def read_from(self, start):
        """Return the rows (image,) of FILES_AT_ONCE positions."""
        positions = range(start, min(start + FILES_AT_ONCE, len(self.order)))
        if self.files is None:
            return [(self.samples.images[self.order[position]],) for position in positions]
        rows = []
        for position in positions:
            index, content = self.read(position)
            self.shown[position] = BAD if content is None else index
            rows.append((self.blank if content is None else np.frombuffer(content, np.uint8),))
        return rows

    def read(self, position):
        """Return (index, content) of the file at a position, or of the one that replaces it; content None if none."""
        first = int(self.order[position])
        for index in range(first, first + (len(self.samples) if self.replace else 1)):
            content = self.files.read(index % len(self.samples))
            if content is not None:
                return index % len(self.samples), content
        return first, None


def made_ahead(make, items, workers):
    """Yield make(item) of each item, in order; threads are a few items ahead."""
    with ThreadPoolExecutor(workers) as pool:
        ahead = collections.deque()
        for item in items:
            ahead.append(pool.submit(make, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
