import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config.load import make_config
from src.data import loading
from src.data.datasets import load_samples
from src.data.formats import PNG_SIGNATURE
from src.data.loading import Loader, eval_loader, train_loader, workers_of
from src.data.reading import Files, Selection
from src.data.samples import Samples
from src.data.transforms import View, eval_view, train_view
from src.errors import UserError


def numbered(count, side=6):
    """Return `count` images; all pixels of an image have its index as their gray value."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 1)).copy()
    return Samples(images, np.arange(count, dtype=np.int32), [str(i) for i in range(count)])


def settings(size=8, batch_size=4, channels=1, **augment):
    data = {"image_size": size, "channels": channels, "crop_fraction": 1.0}
    train = {"batch_size": batch_size}
    return make_config({"data": data, "train": train, "augment": {"crop": "none", "flip": 0.0, **augment}})


def run(view, image, repeats=1):
    """Return an image after the view's operations, `repeats` times."""
    samples = Samples(np.stack([image] * repeats), np.zeros(repeats, np.int32), ["only"])
    return np.concatenate([images for images, _ in Loader(samples, view, repeats, workers=1, seed=0).epoch()])


@pytest.mark.parametrize("count", [1, 4, 10, 12])
def test_evaluation_yields_every_image_once_in_order(count):
    batches = list(eval_loader(settings(), numbered(count)).epoch())
    assert np.concatenate([labels for _, labels in batches]).tolist() == list(range(count))
    for images, labels in batches:
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert (images == labels[:, None, None, None]).all()
        assert images.shape[1:] == (8, 8, 1)


def test_training_yields_complete_batches_of_different_images_in_a_new_order_each_epoch():
    loader = train_loader(settings(), numbered(10))
    assert len(loader) == 2
    orders = [[int(label) for _, labels in loader.epoch(epoch) for label in labels] for epoch in (1, 2)]
    assert orders[0] != orders[1]
    for order in orders:
        assert len(order) == len(set(order)) == 8


def test_an_epoch_is_reproducible(digit_images):
    images, labels = digit_images
    samples = Samples(images[:64, ..., None], labels[:64].astype(np.int32), [str(i) for i in range(10)])
    config = settings(size=16, crop="resized", flip=0.5)
    first, again, other = (
        np.concatenate([batch for batch, _ in train_loader(config, samples).epoch(epoch)]) for epoch in (3, 3, 4)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_batches_of_arrays_do_not_depend_on_the_number_of_workers():
    samples = numbered(40, side=12)
    config = settings(size=12, crop="pad", padding=4, flip=0.5, erasing=0.5)
    config.data.workers = 1
    alone = list(train_loader(config, samples).epoch(3))
    loader = train_loader(config, samples)
    loader.workers = 7
    for expected, actual in zip(alone, loader.epoch(3)):
        assert all((left == right).all() for left, right in zip(expected, actual))


def test_an_epoch_can_start_at_any_batch(digit_images):
    images, labels = digit_images
    samples = Samples(images[:64, ..., None], labels[:64].astype(np.int32), [str(i) for i in range(10)])
    loader = train_loader(settings(size=16, crop="resized", flip=0.5), samples)
    whole, rest = list(loader.epoch(2)), list(loader.epoch(2, skip=5))
    assert len(rest) == len(whole) - 5
    for (expected, _), (actual, _) in zip(whole[5:], rest):
        assert (expected == actual).all()


@pytest.mark.parametrize("count", [24, 26])
def test_each_rank_has_different_images(count):
    config, samples = settings(), numbered(count)
    training = [train_loader(config, samples, rank, 3) for rank in range(3)]
    assert [len(loader) for loader in training] == [2, 2, 2]
    seen = [int(label) for loader in training for _, labels in loader.epoch(1) for label in labels]
    assert len(seen) == len(set(seen)) == 24
    evaluated = [eval_loader(config, samples, rank=rank, ranks=3) for rank in range(3)]
    seen = [int(label) for loader in evaluated for _, labels in loader.epoch() for label in labels]
    assert sorted(seen) == list(range(count))


def test_batch_larger_than_the_training_split_is_an_error():
    with pytest.raises(
        UserError, match=r"train.batch_size: is larger than the training split \(found 11, expected at most 10\)"
    ):
        train_loader(settings(batch_size=11), numbered(10))


def test_more_workers_than_cores_is_an_error():
    config = settings()
    config.data.workers = 4096
    with pytest.raises(UserError, match=r"data.workers: more workers than cores \(found 4096, expected at most \d+\)"):
        train_loader(config, numbered(10))
    assert len(list(eval_loader(config, numbered(10)).epoch())) == 3


def test_pad_crop_is_a_window_of_the_padded_image():
    image = np.random.default_rng(0).integers(1, 256, (8, 8, 1), dtype=np.uint8)
    config = settings(crop="pad", padding=2)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[top : top + 8, left : left + 8].tobytes() for top in range(5) for left in range(5)}
    seen = {crop.tobytes() for crop in run(train_view(config.data, config.augment, False), image, 300)}
    assert seen == windows


def test_horizontal_flip_mirrors_about_half_of_the_images():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    config = settings(flip=0.5)
    out = run(train_view(config.data, config.augment, False), image, 400)
    mirrored = (out == image[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (out == image).all((1, 2, 3))).all()
    assert 150 < mirrored.sum() < 250


def test_random_resized_crop_of_the_whole_image_is_a_resize():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    config = settings(size=9, channels=3, crop="resized", scale=[1.0, 1.0], ratio=[1.0, 1.0])
    assert (run(train_view(config.data, config.augment, False), image) == image).all()


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (37, 37)])
def test_evaluation_is_the_centre_crop_of_the_resized_image(height, width):
    smooth = np.add.outer(np.arange(height) * 2, np.arange(width) * 2)[..., None] * np.ones(3)
    image = smooth.astype(np.uint8)
    config = make_config({"data": {"image_size": 28, "crop_fraction": 0.875}})
    (out,) = run(eval_view(config.data, False), image)
    scale = 32 / min(height, width)
    size = (round(width * scale), round(height * scale))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=None)).astype(int)
    top, left = (resized.shape[0] - 28) // 2, (resized.shape[1] - 28) // 2
    # MindSpore and Pillow interpolate with different weights. On this ramp they differ by at most one step of it.
    assert abs(out - resized[top : top + 28, left : left + 28]).max() <= 3


@pytest.mark.parametrize("channels", [1, 3])
def test_files_and_arrays_are_converted_to_the_networks_channels(photos, digit_images, channels):
    data = {"name": "image_folder", "root": str(photos), "image_size": 32, "channels": channels, "crop_fraction": 1.0}
    config = make_config({"data": data, "train": {"batch_size": 8}})
    samples = load_samples(config.data, "test", ["china", "flower"])
    ((images, _),) = eval_loader(config, samples).epoch()
    assert images.shape == (8, 32, 32, channels)
    (train_images, _), *_ = train_loader(config, load_samples(config.data, "train")).epoch()
    assert train_images.shape == (8, 32, 32, channels)
    reference = Image.open(samples.images[0]).convert("L" if channels == 1 else "RGB").resize((32, 32))
    assert abs(images[0].astype(int).mean() - np.asarray(reference).mean()) < 3

    gray = Samples(digit_images[0][:8, ..., None], np.zeros(8, np.int32), ["any"])
    ((images, _),) = eval_loader(config, gray).epoch()
    assert images.shape == (8, 32, 32, channels)
    assert (images == images[..., :1]).all()


def photo_config(photos, **data):
    data = {"name": "image_folder", "root": str(photos), "image_size": 32, **data}
    return make_config({"data": data, "train": {"batch_size": 4}})


def labels_of(loader, *arguments):
    return [label for _, labels in loader.epoch(*arguments) for label in labels.tolist()]


def test_image_damaged_after_listing_is_reported(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = photo_config(photos)
    samples = load_samples(config.data, "test", ["china", "flower"])
    with open(samples.images[5], "wb") as file:
        file.write(b"\xff\xd8\xff" + b"\x00" * 500)
    with pytest.raises(UserError, match=f"{samples.images[5]}: is a damaged JPEG image"):
        list(eval_loader(config, samples).epoch())
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_bad_images_are_replaced_in_training_and_left_out_in_evaluation(photos):
    config = photo_config(photos, on_bad_image="skip")
    numbered_photos(photos)
    samples = load_samples(config.data, "train")
    whole = values_of(train_loader(config, samples), 1)
    order = train_loader(config, samples).order(1)
    bad = [int(order[0]), int(order[9]), (int(order[9]) + 1) % 24]
    for number in bad[:2]:
        Path(samples.images[number]).unlink()  # The file disappears after it was listed.
    Path(samples.images[bad[2]]).write_bytes(b"")
    loader = train_loader(config, samples)
    values = values_of(loader, 1)
    assert values_of(loader, 1) == values
    assert len(loader.bad) == 3
    # The next good image of the data set replaces a bad image. All other images keep their positions.
    good = [number for number in range(24) if number not in bad]
    replacing = {number: next(n % 24 for n in range(number, number + 24) if n % 24 in good) for number in range(24)}
    assert values == [replacing[value] for value in whole]
    again = [value for images, _ in loader.epoch(1, skip=3) for value in number_seen(images)]
    assert again == values[12:]
    evaluated = eval_loader(config, samples)
    seen = [value for images, _ in evaluated.epoch() for value in number_seen(images)]
    assert (seen, len(evaluated.bad)) == (good, 3)


def test_data_set_of_bad_images_only_is_one_error(photos):
    config = photo_config(photos, on_bad_image="skip")
    samples = load_samples(config.data, "train")
    for file in samples.images:
        Path(file).unlink()
    with pytest.raises(UserError, match="none of the training images can be decoded"):
        list(train_loader(config, samples).epoch(1))
    with pytest.raises(UserError, match="none of the 24 evaluation images can be decoded"):
        list(eval_loader(config, samples).epoch())


def png(width, height, packed_rows):
    """Return a PNG with valid chunks; `packed_rows` may be invalid (W3C PNG, section 5)."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", packed_rows) + chunk(b"IEND", b"")


def test_pillow_decodes_an_image_that_mindspores_decoder_rejects(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = photo_config(photos, crop_fraction=1.0)
    samples = load_samples(config.data, "eval", ["china", "flower"])
    # The compressed rows lack the checksum at their end. Pillow does not need it.
    rows = zlib.compress(b"".join(b"\0" + bytes([7 * i] * 96) for i in range(32)))[:-4]
    Path(samples.images[6]).write_bytes(png(32, 32, rows))
    loader = eval_loader(config, samples)
    assert labels_of(loader) == [0] * 4 + [1] * 4
    assert (loader.files.needs_pillow, len(loader.bad)) == ({6}, 0)
    image = np.concatenate([images for images, _ in loader.epoch()])[6]
    assert (image == 7 * np.arange(32)[:, None, None]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_image_that_mindspore_cannot_decode_after_pillow_is_bad(photos):
    config = photo_config(photos, on_bad_image="skip")
    samples = load_samples(config.data, "eval", ["china", "flower"])
    # The image is wider than MindSpore's limit of a million pixels.
    Path(samples.images[6]).write_bytes(png(1_100_000, 1, zlib.compress(bytes(3_300_001))))
    loader = eval_loader(config, samples)
    assert labels_of(loader) == [0] * 4 + [1] * 3
    assert len(loader.bad) == 1
    config.data.on_bad_image = "error"
    with pytest.raises(UserError, match=f"{samples.images[6]}: is an image that MindSpore cannot decode"):
        labels_of(eval_loader(config, samples))


def numbered_photos(photos):
    """Give all pixels of a training photo the same gray value: ten times its index in the data set."""
    files = sorted((photos / "train").rglob("*.jpg"), key=lambda path: path.parts)
    for number, file in enumerate(files):
        Image.new("RGB", (40, 40), (number * 10,) * 3).save(file, quality=95)


def number_seen(images):
    return [round(image.mean() / 10) for image in images]


def values_of(loader, epoch):
    return [value for images, _ in loader.epoch(epoch) for value in number_seen(images)]


def test_rank_without_images_yields_no_batches():
    loader = Loader(numbered(2), View([], []), 4, workers=1, rank=2, ranks=3)
    assert (len(loader), list(loader.epoch())) == (0, [])


def test_epoch_of_files_is_reproducible_with_the_same_workers(photos):
    config = photo_config(photos)
    samples = load_samples(config.data, "train")
    whole, again, rest = (list(train_loader(config, samples).epoch(2, skip)) for skip in (0, 0, 4))
    assert (len(whole), len(rest)) == (6, 2)
    for expected, actual in zip([*whole, *whole[4:]], [*again, *rest]):
        assert all((left == right).all() for left, right in zip(expected, actual))


@pytest.fixture
def mixed_photos(photos):
    """The photos with different sizes, shapes and formats."""
    for number, file in enumerate(sorted((photos / "train").rglob("*.jpg"))):
        image = Image.open(file).resize((40 + 7 * number, 200 - 8 * number))
        file.unlink()
        if number % 4 == 1:
            image.save(file.with_suffix(".png"))
        else:
            exif = image.getexif()
            exif[0x0112] = 6 if number % 4 == 2 else 1
            image.convert("L" if number % 4 == 3 else "RGB").save(file, quality=90, exif=exif)
    return photos


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "augment",
    [
        {"crop": "resized"},
        {"crop": "resized", "scale": [0.9, 1.0], "ratio": [3.0, 4.0], "vertical_flip": 0.5, "color_jitter": 0.4},
        {"crop": "resized", "auto": "autoaugment", "erasing": 0.5},
        {"crop": "pad", "auto": "randaugment"},
    ],
)
def test_an_epoch_of_different_files_can_start_at_any_batch(mixed_photos, augment, workers):
    data = {"name": "image_folder", "root": str(mixed_photos), "image_size": 32, "workers": workers}
    config = make_config({"data": data, "train": {"batch_size": 3}, "augment": augment})
    loader = train_loader(config, load_samples(config.data, "train"))
    whole = list(loader.epoch(2))
    for skip in (1, 5, 8):
        rest = list(loader.epoch(2, skip))
        assert len(rest) == len(whole) - skip
        for expected, actual in zip(whole[skip:], rest):
            assert all((left == right).all() for left, right in zip(expected, actual))


def test_files_of_skipped_batches_are_not_decoded(mixed_photos):
    samples = load_samples(photo_config(mixed_photos).data, "train")
    selection = Selection(samples, np.arange(24)[::-1].copy(), Files(samples), True, workers=1)
    selection.unseen = 20
    for position, (image, *_) in enumerate(selection):
        file = Path(samples.images[23 - position])
        if position >= 20:
            assert image.tobytes() == file.read_bytes()
        else:
            decoded = Image.open(io.BytesIO(image.tobytes()))
            assert decoded.size == Image.open(file).size
            assert len(decoded.getcolors()) == 1


def test_default_workers_are_the_usable_processors_of_a_rank(monkeypatch):
    monkeypatch.setattr(loading, "usable", lambda: 40)
    assert [workers_of(make_config({}).data, sharing) for sharing in (1, 5, 8, 16, 64)] == [8, 8, 5, 2, 1]
    assert workers_of(make_config({"data": {"workers": 3}}).data, 16) == 3


def test_repeated_augmentation_yields_each_image_several_times_in_an_epoch_of_the_same_length():
    config = settings(batch_size=6, repeats=3)
    loaders = [train_loader(config, numbered(24), rank, 2) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [2, 2]
    seen = [*itertools.chain(*(labels_of(loader, 1) for loader in loaders))]
    assert sorted(np.unique(seen, return_counts=True)[1]) == [3] * 8


@pytest.mark.parametrize("count", [7, 23, 64])
@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_ranks_load_every_image_once(count, ranks):
    config, samples = settings(batch_size=3), numbered(count)
    shares = [labels_of(eval_loader(config, samples, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert sorted(itertools.chain(*shares)) == list(range(count))
    if count >= 3 * ranks:
        loaders = [train_loader(config, samples, rank, ranks) for rank in range(ranks)]
        seen = [*itertools.chain(*(labels_of(loader, 4) for loader in loaders))]
        assert len(seen) == len(set(seen)) == count // (3 * ranks) * 3 * ranks
