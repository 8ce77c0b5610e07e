"""Compare augmentations, and the preprocessing of evaluation, with their definitions."""

import colorsys
import threading

import numpy as np
import pytest
from mindspore.dataset import vision
from PIL import Image, ImageOps
from scipy import stats
from sklearn.datasets import load_sample_images

from src.config.load import make_config
from src.data.loading import Loader, eval_loader, train_loader
from src.data.samples import Samples
from src.data.transforms import (
    View,
    choices,
    erase,
    eval_view,
    flip,
    pad_and_crop,
    randaugment,
    select,
    train_view,
    trivialaugment,
)
from src.errors import UserError


def generator():
    return np.random.default_rng(0)


def images_of(count=40, side=12, channels=3):
    return generator().integers(1, 256, (count, side, side, channels), dtype=np.uint8)


# Width, height and EXIF orientation of photographs of 0.1 to 12 megapixels.
PHOTOS = [
    (400, 300, 1), (301, 399, 2), (500, 375, 3), (375, 500, 4), (640, 427, 5), (427, 640, 6), (517, 517, 7),
    (1200, 301, 8), (800, 601, 3), (603, 1000, 2), (1024, 768, 6), (999, 1111, 5), (1600, 900, 3), (901, 1700, 1),
    (1800, 1203, 8), (2048, 1536, 4), (1500, 2501, 7), (2600, 1733, 3), (3264, 2448, 6), (4000, 3000, 5),
]  # fmt: skip
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def photograph(number, width, height):
    """Return one of scikit-learn's photographs, cropped and resized to a size."""
    source = Image.fromarray(load_sample_images().images[number % 2])
    scale = min(source.width / width, source.height / height)
    left, top = source.width - int(width * scale), source.height - int(height * scale)
    return source.resize((width, height), Image.Resampling.BICUBIC, (left, top, *source.size))


def torchvision_pixels(image, short_side, side, kernel):
    """Return a Pillow image after torchvision's Resize(short_side) and CenterCrop(side), by torchvision's formulas."""
    short, long = sorted(image.size)
    long = int(short_side * long / short)
    image = image.resize((short_side, long) if image.width <= image.height else (long, short_side), kernel)
    top, left = (round((length - side) / 2.0) for length in (image.height, image.width))
    return np.asarray(image.crop((left, top, left + side, top + side))).astype(int)


def test_evaluated_photographs_have_torchvisions_pixels(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(len(PHOTOS))]
    expected = []
    for number, (path, (width, height, orientation)) in enumerate(zip(paths, PHOTOS)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photograph(number, width, height).save(path, quality=90, exif=exif)
        with Image.open(path) as image:
            # With a crop of 225 pixels, the remainders modulo 4 of both sides take all values.
            expected.append(torchvision_pixels(ImageOps.exif_transpose(image), 256, 225, Image.Resampling.BILINEAR))
    config = make_config({"data": {"image_size": 225, "crop_fraction": 225 / 256, "workers": 2}})
    samples = Samples([*map(str, paths)], np.zeros(len(paths), np.int32), ["any"])
    ((images, _),) = eval_loader(config, samples, batch_size=len(paths)).epoch()
    differences = abs(images - np.stack(expected)).mean((1, 2, 3))
    assert differences.max() < 0.5, differences


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height", "channels"), [(640, 427, 3), (333, 500, 1), (9, 8, 1), (60, 64, 3)])
def test_evaluated_arrays_have_torchvisions_pixels(width, height, channels, interpolation):
    data = {"image_size": 56, "crop_fraction": 0.875, "channels": channels, "interpolation": interpolation}
    image = photograph(0, width, height).convert("RGB" if channels == 3 else "L")
    samples = Samples(np.asarray(image).reshape(1, height, width, channels), np.zeros(1, np.int32), ["any"])
    ((images, _),) = eval_loader(make_config({"data": data}), samples).epoch()
    expected = torchvision_pixels(image, 64, 56, PILLOW[interpolation])
    assert abs(images[0] - expected.reshape(56, 56, channels)).max() <= 1


@pytest.mark.parametrize(
    ("interpolation", "kernel"), [("bilinear", vision.Inter.BILINEAR), ("bicubic", vision.Inter.BICUBIC)]
)
def test_without_antialiasing_pixels_are_opencvs(interpolation, kernel):
    data = {"image_size": 56, "interpolation": interpolation, "antialias": False}
    image = np.asarray(photograph(0, 640, 427))
    (operation,) = eval_view(make_config({"data": data}).data, False).batches
    expected = vision.CenterCrop(56)(vision.Resize(64, kernel)(image))
    assert (operation(image[None], None)[0] == expected).all()


def test_pad_and_crop_returns_each_window_of_the_padded_image():
    image = images_of(1, 6)[0]
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[top : top + 6, left : left + 6].tobytes() for top in range(5) for left in range(5)}
    seen = {crop.tobytes() for crop in pad_and_crop(np.stack([image] * 500), generator(), padding=2)}
    assert seen == windows


@pytest.mark.parametrize(("axis", "pillow_flip"), [(1, ImageOps.flip), (2, ImageOps.mirror)])
def test_flip_has_the_given_probability(axis, pillow_flip):
    images = images_of(400)
    flipped = flip(images, generator(), probability=0.25, axis=axis)
    expected = np.stack([np.asarray(pillow_flip(Image.fromarray(image))) for image in images])
    is_flipped = (flipped == expected).all((1, 2, 3))
    assert (is_flipped | (flipped == images).all((1, 2, 3))).all()
    assert 65 <= is_flipped.sum() <= 135  # binomial with mean 100; the limits are four standard deviations
    assert (flip(images, generator(), 1.0, axis) == expected).all()


def test_erasing_fills_one_rectangle_of_the_right_size_with_the_colour():
    images = np.zeros((600, 40, 50, 3), np.uint8)
    erased = erase(images, generator(), probability=0.5, colour=(124, 116, 104))
    assert (images == 0).all()
    hit = erased.any((1, 2, 3))
    assert 250 <= hit.sum() <= 350
    areas, ratios = [], []
    for image in erased[hit]:
        (rows,), (columns,) = image.any((1, 2)).nonzero(), image.any((0, 2)).nonzero()
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert (image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == (124, 116, 104)).all()
        areas.append(tall * wide / 2000)
        ratios.append(tall / wide)
    # The limits are the paper's ranges and the rounding of sides to whole pixels.
    assert 0.01 < min(areas) < 0.04 < 0.28 < max(areas) < 0.36
    assert 0.2 < min(ratios) < 0.5 < 2 < max(ratios) < 4
    assert (erase(images[..., :1], generator(), 1.0, (124, 116, 104)).max((1, 2, 3)) == 124).all()


def test_randaugments_operations_do_what_the_paper_says():
    image = images_of(1, 64)[0]
    *operations, _, last = choices(
        0.5, {"shear": 0.2, "translate": 0.25, "rotate": 60, "enhance": 0.5, "bits": 4}, (0, 0, 0)
    )
    assert len(operations) == 26
    results = [operation(image) for [(operation, _)] in operations[:13]]
    assert (results[2][:, :56] == image[:, 8:]).all()
    assert (results[2][:, 56:] == 0).all()
    assert (results[3][:56] == image[8:]).all()
    darker = np.asarray(Image.blend(Image.new("RGB", (64, 64)), Image.fromarray(image), 0.75))
    assert abs(results[5].astype(int) - darker).max() <= 1
    assert (results[9] == image & 0b11111100).all()
    assert (results[10] == np.where(image >= 128, 255 - image, image)).all()
    assert (results[11] == np.asarray(ImageOps.autocontrast(Image.fromarray(image)))).all()
    dark = [operation for [(operation, _)] in operations[:13]][12](image // 4)
    assert (
        np.histogram(dark, 4, (0, 256))[0] / dark.size
    ).min() > 0.2  # Equalize spreads the lowest quarter over all four.
    assert [probability for _, probability in last] == [0.0]


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_shear_holds_the_upper_or_the_left_edge(strength):
    """torchvision's autoaugment.py shears with `center=[0, 0]`: the inverse matrix is (1, ±slope, 0, 0, 1, 0)."""
    image = np.add.outer(np.arange(64) * 2, np.arange(64)).astype(np.uint8)[..., None].repeat(3, -1) + 20
    strongest = {"shear": 0.5, "translate": 0.25, "rotate": 60, "enhance": 0.5, "bits": 4}
    found = [operation(image) for [(operation, _)] in choices(strength, strongest, (0, 0, 0))[:26]]
    for sign, horizontal, vertical in ((-1, found[0], found[1]), (1, found[13], found[14])):
        slope = sign * strength * 0.5
        for sheared, matrix in ((horizontal, (1, slope, 0, 0, 1, 0)), (vertical, (1, 0, 0, slope, 1, 0))):
            expected = Image.fromarray(image).transform((64, 64), Image.Transform.AFFINE, matrix)
            assert abs(sheared.astype(int) - np.asarray(expected)).mean() < 0.5


def angles_of(operations):
    """Return the angles of all rotations, from -180 to 180 degrees; MindSpore stores them from 0 to 360."""
    rotations = [operation for [(operation, _)] in operations if isinstance(operation, vision.Rotate)]
    return np.array([(rotation.degrees + 180) % 360 - 180 for rotation in rotations])


def test_magnitudes_of_randaugment_are_normally_distributed_and_clipped():
    noisy = randaugment(27, (0, 0, 0), probability=0.5, deviation=1.5)
    assert {probability for [(_, probability)] in noisy} == {0.0, 0.5}
    drawn = np.clip(generator().normal(27, 1.5, 100_000), 0, 30)  # magnitude 30 rotates by 30 degrees
    angles = angles_of(noisy)
    for angles_of_sign in (angles[angles > 0], -angles[angles < 0]):
        assert abs(angles_of_sign.mean() - drawn.mean()) < 0.05
        assert abs(angles_of_sign.std() / drawn.std() - 1) < 0.05
        assert angles_of_sign.max() == 30
    assert angles_of(randaugment(27, (0, 0, 0))).tolist() == [-27, 27]


def test_randaugment_applies_an_operation_with_its_probability():
    image = np.asarray(photograph(0, 32, 32))
    samples = Samples(np.stack([image] * 800), np.zeros(800, np.int32), ["any"])
    shares = []
    for probability in (1.0, 0.25):
        augment = {"crop": "none", "flip": 0.0, "auto": "randaugment", "num_ops": 1, "magnitude": 15}
        config = make_config(
            {"data": {"image_size": 32, "crop_fraction": 1.0}, "augment": {**augment, "probability": probability}}
        )
        loader = Loader(samples, train_view(config.data, config.augment, False), 800, workers=1, seed=1)
        ((images, _),) = loader.epoch()
        shares.append((images != image).any((1, 2, 3)).mean())
    assert shares[0] > 0.7
    assert abs(shares[1] - shares[0] / 4) < 0.07  # four standard deviations


@pytest.mark.parametrize("choose", [lambda fill: randaugment(30, fill), trivialaugment])
def test_no_choice_returns_a_blank_image(choose):
    """The translations of MindSpore's RandAugment and TrivialAugmentWide return blank images."""
    image = np.asarray(Image.linear_gradient("L").convert("RGB").rotate(45).resize((64, 64)))
    for [(operation, probability)] in choose((9, 9, 9)):
        if probability:
            out = operation(image)
            assert (out.shape, out.dtype) == (image.shape, np.uint8)
            assert len(np.unique(out)) > 1


def marked_images(count):
    """Return images with one bright pixel at (4, 4); its new position shows which operations were applied."""
    images = np.zeros((count, 16, 16, 3), np.uint8)
    images[:, 4, 4] = 255
    return Samples(images, np.zeros(count, np.int32), ["a", "b"])


def places(view, samples, workers):
    ((images, _),) = Loader(samples, view, len(samples), workers, seed=3).epoch(1)
    return [tuple(np.argwhere(image[..., 0] > 128)[0]) for image in images]


def assert_independent(pairs):
    """Assert that the two decisions in `pairs` are independent (Pearson's chi-squared test, p > 1e-4)."""
    left_values, right_values = (set(values) for values in zip(*pairs))
    table = [[pairs.count((left, right)) for right in right_values] for left in left_values]
    assert min(map(min, table)) > 0
    assert stats.chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("workers", [1, 2])
def test_flips_are_independent_of_each_other_and_of_the_crop(workers):
    """MindSpore's RandomHorizontalFlip, RandomVerticalFlip and RandomCrop always make the same decision."""
    settings = {"data": {"image_size": 16, "crop_fraction": 1.0}, "augment": {"flip": 0.5, "vertical_flip": 0.5}}
    settings["augment"].update(crop="resized", scale=[1.0, 1.0], ratio=[1.0, 1.0])
    config = make_config(settings)
    found = places(train_view(config.data, config.augment, False), marked_images(600), workers)
    assert_independent([(row == 4, column == 4) for row, column in found])
    config = make_config({**settings, "augment": {"crop": "pad", "padding": 1, "flip": 0.5, "color_jitter": 1e-9}})
    found = places(train_view(config.data, config.augment, False), marked_images(600), workers)
    # The crop moves the pixel by at most one, so that its half of the image shows the flip.
    assert_independent([(row, column > 7) for row, column in found])


@pytest.mark.parametrize("workers", [1, 2])
def test_randaugments_operations_are_independent(workers):
    shifts = [[(vision.Affine(0.0, [shift / 16, 0.0], 1.0, [0.0, 0.0]), 1.0)] for shift in range(3)]
    drops = [[(vision.Affine(0.0, [0.0, shift / 16], 1.0, [0.0, 0.0]), 1.0)] for shift in range(3)]
    for first, second in ((1, 2), (0, 1), (2, 3)):
        found = places(View([select(shifts, first), select(drops, second)], []), marked_images(600), workers)
        assert_independent(found)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("auto", ["randaugment", "trivialaugment", "autoaugment"])
def test_policies_change_most_images_and_are_reproducible(auto, channels):
    config = make_config(
        {
            "data": {"image_size": 32, "channels": channels, "crop_fraction": 1.0},
            "augment": {"crop": "none", "flip": 0.0, "auto": auto},
            "train": {"batch_size": 32},
        }
    )
    smooth = np.asarray(Image.linear_gradient("L").rotate(30).resize((32, 32)))[..., None]
    samples = Samples(np.stack([smooth] * 64), np.zeros(64, np.int32), ["a", "b"])
    loader = train_loader(config, samples)
    first, again = (np.concatenate([images for images, _ in loader.epoch(1)]) for _ in range(2))
    assert first.shape == (64, 32, 32, channels)
    assert (first == again).all()
    assert (abs(first.astype(int) - smooth).max((1, 2, 3)) > 1).sum() > 25


def test_color_jitter_stays_within_its_range():
    config = make_config(
        {
            "data": {"image_size": 16, "crop_fraction": 1.0},
            "augment": {"crop": "none", "flip": 0.0, "color_jitter": 0.3},
        }
    )
    gray = np.full((100, 16, 16, 3), 100, np.uint8)
    samples = Samples(gray, np.zeros(100, np.int32), ["a", "b"])
    view = train_view(config.data, config.augment, False)
    ((images, _),) = Loader(samples, view, 100, workers=1, seed=0).epoch()
    # Only brightness changes an image of one gray value. Contrast and saturation do not.
    assert (images == images[:, :1, :1, :1]).all()
    levels = images[:, 0, 0, 0]
    assert 69 <= levels.min() < 80
    assert 120 < levels.max() <= 131


def test_hue_turns_evenly_in_its_range():
    colour = (200, 80, 60)
    samples = Samples(np.full((400, 8, 8, 3), colour, np.uint8), np.zeros(400, np.int32), ["any"])
    config = make_config(
        {"data": {"image_size": 8, "crop_fraction": 1.0}, "augment": {"crop": "none", "flip": 0.0, "hue": 0.2}}
    )
    ((images, _),) = Loader(samples, train_view(config.data, config.augment, False), 400, workers=1, seed=0).epoch()
    hue, saturation, value = colorsys.rgb_to_hsv(*np.array(colour) / 255)
    found = np.array([colorsys.rgb_to_hsv(*pixel / 255) for pixel in images[:, 3, 5]])
    turned = (found[:, 0] - hue + 0.5) % 1 - 0.5
    assert stats.kstest(turned, stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-4
    assert abs(turned).max() < 0.2 + 1 / 180  # OpenCV counts hues in 180 steps
    assert abs(found[:, 1:] - (saturation, value)).max() < 0.02


def test_a_thread_erases_and_the_pixels_depend_on_seed_epoch_and_batch_only():
    samples = Samples(images_of(12, 16), np.zeros(12, np.int32), ["any"])
    settings = {"data": {"image_size": 16}, "augment": {"crop": "resized", "erasing": 0.7}}
    config = make_config(settings)
    view = train_view(config.data, config.augment, False)
    threads = []

    def remember(images, _):
        threads.append(threading.get_ident())
        return images

    erased = list(Loader(samples, View(view.rows, [*view.batches, remember]), 4, workers=1, seed=5).epoch(2))
    plain = list(Loader(samples, View(view.rows, []), 4, workers=1, seed=5).epoch(2))
    assert len(erased) == len(plain) == len(threads) == 3
    assert threading.get_ident() not in threads
    for number, ((found, _), (images, _)) in enumerate(zip(erased, plain)):
        random = np.random.default_rng((5, 2, 0, number))
        assert (found == erase(images, random, 0.7, (124, 116, 104))).all()


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        (
            {"probability": 0.5},
            "augment.probability: is used with augment.auto=randaugment only (found augment.auto=none)",
        ),
        ({"auto": "randaugment", "magnitude_std": -1.0}, "augment.magnitude_std: -1"),
        ({"hue": 0.6}, "augment.hue: 0.6"),
        ({"num_ops": 3}, "augment.num_ops: is used with augment.auto=randaugment only (found augment.auto=none)"),
        (
            {"auto": "trivialaugment", "magnitude": 3},
            "augment.magnitude: is used with augment.auto=randaugment only (found augment.auto=trivialaugment)",
        ),
        ({"auto": "randaugment", "magnitude": 31}, "augment.magnitude: 31"),
        ({"auto": "randagument"}, "did you mean randaugment?"),
        ({"repeats": 0}, "augment.repeats: 0"),
        ({"erasing": 1.5}, "augment.erasing: 1.5"),
    ],
)
def test_unused_and_invalid_settings_are_errors(augment, said):
    with pytest.raises(UserError) as caught:
        make_config({"augment": augment})
    assert said in str(caught.value)


def test_randaugment_settings_get_their_defaults():
    augment = make_config({"augment": {"auto": "randaugment", "magnitude": 5}}).augment
    assert (augment.num_ops, augment.magnitude) == (2, 5)
