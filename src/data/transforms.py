"""What happens to images between the dataset and the network: uint8 throughout, the network normalises.

A `View` has two parts. `rows` are operators of MindSpore's C++ pipeline on one image. `batches` are functions of whole
batches, uint8 (N, H, W, C), and a NumPy generator: for arrays in memory, where a pipeline of single small images would
spend its time on handing them over, and for random erasing, which the C++ pipeline does not have.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from mindspore.dataset import vision

ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's, after Zhong et al. (arxiv.org/abs/1708.04896)
STEPS = 30  # RandAugment's scale of magnitudes
ERASING_ATTEMPTS = 10  # to draw a rectangle that fits


@dataclass(frozen=True)
class View:
    """The operations on images; without `rows` all work is done on batches of arrays."""

    rows: list
    batches: list


def train_view(data, augment, are_files):
    """Return the `View` of training images; `data` and `augment` are the config's sections.

    Encoded files (uint8, 1-D) or arrays (H, W, C) become (image_size, image_size, C); C is missing where an image is
    turned gray.
    """
    fill = mean_colour(data)
    erasing = [functools.partial(erase, probability=augment.erasing, colour=fill)] if augment.erasing else []
    recolours = augment.color_jitter > 0 or augment.auto != "none"
    if are_files or recolours or augment.crop == "resized":
        return View(train_rows(data, augment, are_files, recolours, fill), erasing)
    batches = eval_view(data, are_files).batches
    if augment.crop == "pad":
        batches = [*batches, functools.partial(pad_and_crop, padding=augment.padding)]
    for probability, axis in ((augment.flip, 2), (augment.vertical_flip, 1)):
        if probability:
            batches.append(functools.partial(flip, probability=probability, axis=axis))
    return View([], [*batches, *erasing])


def eval_view(data, are_files):
    """Return the `View` of evaluated images: short side to image_size / crop_fraction, then the centre."""
    if are_files:
        return View([vision.Decode(), *resize_and_crop(data), *to_gray(data)], [])
    return View([], [functools.partial(apply_each, operations=resize_and_crop(data))])


def train_rows(data, augment, are_files, recolours, fill):
    """Return the C++ operators on one training image."""
    if augment.crop == "resized":
        # From a file in one operation, which decodes no more of a JPEG than the crop needs.
        crop = vision.RandomCropDecodeResize if are_files else vision.RandomResizedCrop
        rows = [crop(data.image_size, augment.scale, augment.ratio)]
    else:
        rows = [*([vision.Decode()] if are_files else []), *resize_and_crop(data)]
    if augment.crop == "pad":
        rows.append(vision.RandomCrop(data.image_size, augment.padding))
    if augment.vertical_flip or (augment.flip and augment.crop != "resized"):
        flips = [(vision.HorizontalFlip(), augment.flip), (vision.VerticalFlip(), augment.vertical_flip)]
        rows.append(select([flips], number=0))
    elif augment.flip:
        rows.append(vision.RandomHorizontalFlip(augment.flip))
    if recolours and not are_files and data.channels == 1:
        rows.append(vision.ConvertColor(vision.ConvertMode.COLOR_GRAY2RGB))  # the next ones take no gray image
    if augment.color_jitter:
        rows.append(vision.RandomColorAdjust(augment.color_jitter, augment.color_jitter, augment.color_jitter))
    if augment.auto == "randaugment":
        operations = randaugment(augment.magnitude, fill)
        rows += [select(operations, number) for number in range(1, augment.num_ops + 1)]
    elif augment.auto == "trivialaugment":
        rows.append(select(trivialaugment(fill), number=1))
    elif augment.auto == "autoaugment":
        rows.append(vision.AutoAugment(fill_value=fill))
    return [*rows, *(to_gray(data) if are_files or recolours else [])]


def select(choices, number):
    """Return the operator that applies one of the `choices`, each a list of (operation, probability), to an image.

    All random operators of a worker begin with the same seed. Those that draw equally many numbers an image would take
    the same decisions ever after, as MindSpore's two flips do; so each `number` of 0 on draws another count.
    """
    draws = [(vision.HorizontalFlip(), 0.0)] * (2 * number)
    return vision.RandomSelectSubpolicy([choice + draws for choice in choices])


def randaugment(magnitude, fill):
    """Return the choices of RandAugment (Cubuk et al., arxiv.org/abs/1909.13719, table 6) at a magnitude of 0..30.

    MindSpore's own (2.7.0, as its TrivialAugmentWide) moves each translated image out of sight: 2 of 14 are blank.
    """
    strongest = {"shear": 0.3, "translate": 150 / 331, "rotate": 30.0, "enhance": 0.9, "bits": 4}
    return choices(magnitude / STEPS, strongest, fill)


def trivialaugment(fill):
    """Return the choices of TrivialAugment's wide space (Mueller and Hutter, arxiv.org/abs/2103.10158, table 3).

    Translations of up to 32 pixels are taken for those of 224.
    """
    strongest = {"shear": 0.99, "translate": 32 / 224, "rotate": 135.0, "enhance": 0.99, "bits": 6}
    return [choice for step in range(STEPS + 1) for choice in choices(step / STEPS, strongest, fill)]


def choices(strength, strongest, fill):
    """Return RandAugment's 14 operations at a `strength` of 0..1, each twice: towards either side if it has two."""
    operations = []
    for sign in (-1, 1):
        angle = sign * math.degrees(math.atan(strength * strongest["shear"]))
        shift, factor = sign * strength * strongest["translate"], 1 + sign * strength * strongest["enhance"]
        operations += [
            vision.Affine(0.0, [0.0, 0.0], 1.0, [angle, 0.0], fill_value=fill),
            vision.Affine(0.0, [0.0, 0.0], 1.0, [0.0, angle], fill_value=fill),
            vision.Affine(0.0, [shift, 0.0], 1.0, [0.0, 0.0], fill_value=fill),
            vision.Affine(0.0, [0.0, shift], 1.0, [0.0, 0.0], fill_value=fill),
            vision.Rotate(sign * strength * strongest["rotate"], fill_value=fill),
            vision.AdjustBrightness(factor),
            vision.AdjustSaturation(factor),
            vision.AdjustContrast(factor),
            vision.AdjustSharpness(factor),
            vision.Posterize(8 - round(strength * strongest["bits"])),
            vision.Solarize((255 * (1 - strength), 255)),
            vision.AutoContrast(),
            vision.Equalize(),
        ]
    identity = (vision.AutoContrast(), 0.0)
    return [[(operation, 1.0)] for operation in operations] + [[identity], [identity]]


def resize_and_crop(data):
    return [vision.Resize(round(data.image_size / data.crop_fraction)), vision.CenterCrop(data.image_size)]


def to_gray(data):
    """Files are decoded to RGB; a network of one channel sees their luminance."""
    return [vision.ConvertColor(vision.ConvertMode.COLOR_RGB2GRAY)] if data.channels == 1 else []


def mean_colour(data):
    """Return data.mean as three integers of 0..255."""
    return tuple(round(value * 255) for value in (data.mean * 3)[:3])


def apply_each(images, generator, operations):
    """Apply deterministic C++ operators to a batch; none of them draws from the `generator`."""
    for operation in operations:
        images = operation(images)
    return images


def pad_and_crop(images, generator, padding):
    """Pad each image with black on every side and cut a window of the old size anywhere from it."""
    count, height, width = images.shape[:3]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    cropped = np.empty_like(images)
    for i, (top, left) in enumerate(generator.integers(0, 2 * padding + 1, (count, 2))):
        cropped[i] = padded[i, top : top + height, left : left + width]
    return cropped


def flip(images, generator, probability, axis):
    """Reverse each image with a `probability`; axis 1 is top to bottom, 2 left to right."""
    chosen = generator.random(len(images)) < probability
    return np.where(chosen[:, None, None, None], np.flip(images, axis), images)


def erase(images, generator, probability, colour):
    """Fill a random rectangle of each image with a `colour`, with a `probability` (Zhong et al., algorithm 1)."""
    images = images.copy()
    height, width, channels = images.shape[1:]
    for i in np.flatnonzero(generator.random(len(images)) < probability):
        for _ in range(ERASING_ATTEMPTS):
            area = generator.uniform(*ERASED_AREA) * height * width
            ratio = math.exp(generator.uniform(*np.log(ERASED_RATIO)))
            tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if tall < height and wide < width:
                top, left = generator.integers(height - tall + 1), generator.integers(width - wide + 1)
                images[i, top : top + tall, left : left + wide] = colour[:channels]
                break
    return images
