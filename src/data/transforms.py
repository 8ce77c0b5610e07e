"""Augmentation of training images and preprocessing of evaluated images.

All images are uint8; the network normalises them. A `View` has two parts. `rows` are operators of MindSpore's C++
pipeline, each applied to one image. `batches` are functions of a whole batch, uint8 (N, H, W, C), and a NumPy
generator. They are used for arrays in memory, because the pipeline would spend its time on passing single small images
from step to step. They are also used for random erasing, which the C++ pipeline does not support.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
from mindspore.dataset import vision

from src.config.schema import AugmentConfig, DataConfig, resolved

ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's, after Zhong et al. (arxiv.org/abs/1708.04896)
STEPS = 30  # RandAugment's scale of magnitudes
ERASING_ATTEMPTS = 10  # tries to find a random rectangle that fits into the image

Choice = list[tuple[Any, float]]  # (operator, probability): operators applied one after another
BatchOperation = Callable[..., np.ndarray]  # of (images, generator)


@dataclass(frozen=True)
class View:
    """The operations on images. Without `rows`, all operations work on batches of arrays."""

    rows: list[Any]
    batches: list[BatchOperation]


def train_view(data: DataConfig, augment: AugmentConfig, are_files: bool) -> View:
    """Return the `View` of training images; `data` and `augment` are sections of the config.

    Encoded files (uint8, 1-D) or arrays (H, W, C) become (image_size, image_size, C). The last axis is missing if an
    RGB image is converted to gray.
    """
    fill = mean_colour(data)
    erasing: list[BatchOperation] = []
    if augment.erasing:
        erasing.append(functools.partial(erase, probability=augment.erasing, colour=fill))
    recolours = augment.color_jitter > 0 or augment.auto != "none"
    if are_files or recolours or augment.crop == "resized":
        return View(train_rows(data, augment, are_files, recolours, fill), erasing)
    batches = eval_view(data, are_files).batches
    if augment.crop == "pad":
        batches = [*batches, functools.partial(pad_and_crop, padding=resolved(augment.padding))]
    for probability, axis in ((augment.flip, 2), (augment.vertical_flip, 1)):
        if probability:
            batches.append(functools.partial(flip, probability=probability, axis=axis))
    return View([], [*batches, *erasing])


def eval_view(data: DataConfig, are_files: bool) -> View:
    """Return the `View` of evaluated images: resize the short side to image_size / crop_fraction, then centre crop."""
    if are_files:
        return View([vision.Decode(), *resize_and_crop(data), *to_gray(data)], [])
    return View([], [functools.partial(apply_each, operations=resize_and_crop(data))])


def train_rows(
    data: DataConfig, augment: AugmentConfig, are_files: bool, recolours: bool, fill: tuple[int, ...]
) -> list[Any]:
    """Return the C++ operators for one training image.

    `recolours`: the config has augmentations that change colours. `fill` is the colour of pixels outside the image.
    """
    if augment.crop == "resized":
        # For files, one operator decodes and crops, and decodes only the part of a JPEG that the crop needs.
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
        # The next operators do not support gray images.
        rows.append(vision.ConvertColor(vision.ConvertMode.COLOR_GRAY2RGB))
    if augment.color_jitter:
        rows.append(vision.RandomColorAdjust(augment.color_jitter, augment.color_jitter, augment.color_jitter))
    if augment.auto == "randaugment":
        operations = randaugment(resolved(augment.magnitude), fill)
        rows += [select(operations, number) for number in range(1, resolved(augment.num_ops) + 1)]
    elif augment.auto == "trivialaugment":
        rows.append(select(trivialaugment(fill), number=1))
    elif augment.auto == "autoaugment":
        rows.append(vision.AutoAugment(fill_value=fill))
    return [*rows, *(to_gray(data) if are_files or recolours else [])]


def select(choices: list[Choice], number: int) -> Any:
    """Return the operator that applies one random choice of `choices` to an image.

    All random operators of a worker start with the same seed. Two operators that use equally many random numbers per
    image would make the same decision for every image, as MindSpore's two flips do. So each operator of a pipeline gets
    another `number`, 0, 1, 2 and so on, and uses a different count of random numbers.
    """
    random_numbers = [(vision.HorizontalFlip(), 0.0)] * (2 * number)  # They use random numbers and change no image.
    return vision.RandomSelectSubpolicy([choice + random_numbers for choice in choices])


def randaugment(magnitude: int, fill: tuple[int, ...]) -> list[Choice]:
    """Return the choices of RandAugment (Cubuk et al., arxiv.org/abs/1909.13719, table 6) at a magnitude of 0..30.

    MindSpore's RandAugment and TrivialAugmentWide (2.7.0) are not used: their translations move the image completely
    out of the frame, so 2 of their 14 operations return a blank image.
    """
    strongest = {"shear": 0.3, "translate": 150 / 331, "rotate": 30.0, "enhance": 0.9, "bits": 4}
    return choices(magnitude / STEPS, strongest, fill)


def trivialaugment(fill: tuple[int, ...]) -> list[Choice]:
    """Return the choices of TrivialAugment's wide space (Mueller and Hutter, arxiv.org/abs/2103.10158, table 3).

    The paper's translations of up to 32 pixels become 32/224 of the image's side.
    """
    strongest = {"shear": 0.99, "translate": 32 / 224, "rotate": 135.0, "enhance": 0.99, "bits": 6}
    return [choice for step in range(STEPS + 1) for choice in choices(step / STEPS, strongest, fill)]


def choices(strength: float, strongest: dict[str, float], fill: tuple[int, ...]) -> list[Choice]:
    """Return RandAugment's 14 operations at a `strength` of 0..1; `strongest` has their parameters at strength 1.

    Each operation is there twice: once for each direction, if it has two directions.
    """
    operations: list[Any] = []
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


def resize_and_crop(data: DataConfig) -> list[Any]:
    """Return the operators that resize the short side to image_size / crop_fraction and crop the centre."""
    return [vision.Resize(round(data.image_size / data.crop_fraction)), vision.CenterCrop(data.image_size)]


def to_gray(data: DataConfig) -> list[Any]:
    """Return the operator from RGB to luminance if the network has one input channel, otherwise no operator."""
    return [vision.ConvertColor(vision.ConvertMode.COLOR_RGB2GRAY)] if data.channels == 1 else []


def mean_colour(data: DataConfig) -> tuple[int, ...]:
    """Return data.mean as three integers of 0..255."""
    return tuple(round(value * 255) for value in (resolved(data.mean) * 3)[:3])


def apply_each(images: np.ndarray, generator: Optional[np.random.Generator], operations: list[Any]) -> np.ndarray:
    """Apply deterministic C++ operators to a batch; they do not use the `generator`."""
    for operation in operations:
        images = operation(images)
    return images


def pad_and_crop(images: np.ndarray, generator: np.random.Generator, padding: int) -> np.ndarray:
    """Pad each image with `padding` black pixels on every side, and crop it to its old size at a random position."""
    count, height, width = images.shape[:3]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    cropped = np.empty_like(images)
    for i, (top, left) in enumerate(generator.integers(0, 2 * padding + 1, (count, 2))):
        cropped[i] = padded[i, top : top + height, left : left + width]
    return cropped


def flip(images: np.ndarray, generator: np.random.Generator, probability: float, axis: int) -> np.ndarray:
    """Flip each image with a `probability`: vertically with axis 1, horizontally with axis 2."""
    chosen = generator.random(len(images)) < probability
    return np.where(chosen[:, None, None, None], np.flip(images, axis), images)


def erase(
    images: np.ndarray, generator: np.random.Generator, probability: float, colour: tuple[int, ...]
) -> np.ndarray:
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
