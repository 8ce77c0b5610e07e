"""Photos that EXIF turns, and the limit of what is read ahead."""

import threading

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from src.config.load import make_config
from src.data import formats, reading
from src.data.datasets import load_samples
from src.data.loading import eval_loader, train_loader
from src.data.reading import ReadAhead, Selection
from src.data.samples import Samples

ORIENTATIONS = range(1, 9)
SIZES = [(211, 150), (150, 211), (180, 123), (97, 203)]


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Make folders of the same photos: `turned` by EXIF, `plain` without EXIF, and `upright` PNGs turned by Pillow."""
    folder = tmp_path_factory.mktemp("photos")
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    for split in ("train", "val"):
        for kind in ("turned", "plain", "upright"):
            (folder / kind / split / "any").mkdir(parents=True)
        for number, (orientation, size) in enumerate((value, size) for value in ORIENTATIONS for size in SIZES):
            name = f"{split}/any/{number:02d}"
            photo = photos[number % 2].resize(size)
            turned, plain = (folder / kind / f"{name}.jpg" for kind in ("turned", "plain"))
            photo.save(turned, quality=90, exif=exif_of(orientation))
            photo.save(plain, quality=90)
            ImageOps.exif_transpose(Image.open(turned)).save(folder / "upright" / f"{name}.png")
    return folder


def config_of(root, **augment):
    data = {"name": "image_folder", "root": str(root), "image_size": 64, "workers": 2}
    return make_config({"data": data, "train": {"batch_size": 8}, "augment": {"flip": 0.0, **augment}})


def images_of(loader, epoch=0):
    return np.concatenate([images for images, _ in loader.epoch(epoch)]).astype(int)


def evaluated(root):
    config = config_of(root)
    return eval_loader(config, load_samples(config.data, "eval"))


def trained(root, **augment):
    config = config_of(root, **augment)
    return train_loader(config, load_samples(config.data, "train"))


def test_evaluation_of_turned_photos_equals_the_evaluation_of_what_pillow_turned(folders):
    loader = evaluated(folders / "turned")
    turned = images_of(loader)
    # Pillow resizes the rows, rounds, and resizes the columns. In a photo that lies on its side, rows are columns.
    difference = abs(turned - images_of(evaluated(folders / "upright")))
    assert difference.max() <= 1
    assert difference.mean() < 0.1
    assert (images_of(loader) == turned).all()


def test_random_crops_of_turned_photos_are_turned(folders):
    """The crop of the stored pixels is the same with and without an EXIF orientation; only the first crop is turned."""
    turned, plain = trained(folders / "turned", crop="resized"), trained(folders / "plain", crop="resized")
    for epoch in (1, 2):
        for number, image, stored in zip(turned.order(epoch), images_of(turned, epoch), images_of(plain, epoch)):
            expected = Image.fromarray(stored.astype(np.uint8))
            expected.getexif()[0x0112] = ORIENTATIONS[number // len(SIZES)]
            assert (image == np.asarray(ImageOps.exif_transpose(expected))).all()


@pytest.mark.parametrize("augment", [{"crop": "none", "flip": 0.5}, {"crop": "pad"}])
def test_other_crops_and_flips_of_turned_photos_equal_those_of_upright_photos(folders, augment):
    turned, upright = (images_of(trained(folders / kind, **augment), 1) for kind in ("turned", "upright"))
    assert abs(turned - upright).max() <= 1


def test_pillow_does_not_decode_turned_photos(folders, monkeypatch):
    def fail(content):
        raise AssertionError("Pillow decodes a valid JPEG")

    monkeypatch.setattr(formats, "decode", fail)
    assert len(images_of(evaluated(folders / "turned"))) == len(ORIENTATIONS) * len(SIZES)
    assert len(images_of(trained(folders / "turned"), 1)) == len(ORIENTATIONS) * len(SIZES)


def test_orientations_travel_only_where_a_photo_may_be_turned(folders):
    loader = evaluated(folders / "upright")
    assert Selection(loader.samples, loader.order(0), loader.files, False, 1).columns == ["image", "orientation"]
    first = images_of(loader)
    assert Selection(loader.samples, loader.order(0), loader.files, False, 1).columns == ["image"]
    assert (images_of(loader) == first).all()


class Source:
    """Rows of known sizes; `most` is the largest number of bytes that were read and not yet taken."""

    def __init__(self, sizes):
        self.sizes = sizes
        self.lock = threading.Lock()
        self.waiting = self.most = 0

    def read(self, position):
        with self.lock:
            self.waiting += self.sizes[position]
            self.most = max(self.most, self.waiting)
        return (np.full(self.sizes[position], position % 256, np.uint8),)

    def take(self, row):
        with self.lock:
            self.waiting -= len(row)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("largest", [10, 300, 5000])
def test_threads_read_a_limited_number_of_bytes_ahead(monkeypatch, workers, largest):
    monkeypatch.setattr(reading, "BYTES_AHEAD", 1000)
    source = Source(np.random.default_rng(workers).integers(1, largest + 1, 700).tolist())
    for position, (row,) in enumerate(ReadAhead(source.read, 700, workers)):
        assert (len(row), row[0]) == (source.sizes[position], position % 256)
        source.take(row)
    # Each thread may have started to read one row before the limit was reached, and one row was just taken.
    assert source.most <= 1000 + (workers + 1) * largest
    if largest == 10:  # The number of rows is limited too: by the tasks in flight.
        assert source.most <= (2 * workers + 2) * reading.FILES_AT_ONCE * largest


def test_reading_ahead_ends_with_its_reader_and_passes_errors_on(monkeypatch):
    monkeypatch.setattr(reading, "BYTES_AHEAD", 10)
    readers = set()  # their threads: other tests of the process may end threads meanwhile

    def read(position):
        readers.add(threading.current_thread())
        if position == 20:
            raise MemoryError
        return (np.zeros(100, np.uint8),)

    rows = iter(ReadAhead(read, 500, 3))
    next(rows)
    rows.close()
    assert readers
    assert not any(thread.is_alive() for thread in readers)

    readers.clear()
    taken = []
    with pytest.raises(MemoryError):
        taken.extend(ReadAhead(read, 500, 3))
    assert readers
    assert not any(thread.is_alive() for thread in readers)


def test_arrays_are_passed_on_without_threads():
    samples = Samples(np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1), np.zeros(3, np.int32), ["any"])
    rows = list(Selection(samples, np.array([2, 0]), None, False, 1))
    assert [row[0][0, 0, 0] for row in rows] == [8, 0]
