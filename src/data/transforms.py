"""Augmentation of training images and preprocessing of evaluated images.

All images are uint8; the network normalises them. A `View` has two parts. `rows` are operators of MindSpore's
pipeline, each applied to one image. Most are C++ operators. `batches` are functions of a whole batch, uint8
(N, H, W, C), and a NumPy generator. They are used for arrays in memory, because the pipeline would spend its time on
passing single small images from step to step. They are also used for random erasing, which the C++ pipeline does not
support.
"""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Callable, Optional

import numpy as np
from mindspore.dataset import vision
from PIL import Image

from src.config.schema import AugmentConfig, DataConfig, resolved

ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's, after Zhong et al. (arxiv.org/abs/1708.04896)
STEPS = 30  # RandAugment's scale of magnitudes
MAGNITUDES = 32  # a normal distribution of magnitudes is divided into this number of equally likely values
KERNELS = {  # data.interpolation: of Pillow, which antialiases, and of OpenCV, which does not
    "bilinear": (Image.Resampling.BILINEAR, vision.Inter.BILINEAR),
    "bicubic": (Image.Resampling.BICUBIC, vision.Inter.BICUBIC),
}
DECODING = 2  # operators that decode an image and resize it, before the crop
ERASING_ATTEMPTS = 10  # tries to find a random rectangle that fits into the image

Choice = list[tuple[Any, float]]  # (operator, probability): operators applied one after another
BatchOperation = Callable[..., np.ndarray]  # of (images, generator)


@dataclass(frozen=True)
class View:
    """The operations on images. Without `rows`, all operations work on batches of arrays.

    The first `decoding` operators of `rows` decode an image and make it small. The loader turns the image upright after
    these operators, because a small image is turned in less time and memory.
    """

    rows: list[Any]
    batches: list[BatchOperation]
    decoding: int = 0


def train_view(data: DataConfig, augment: AugmentConfig, are_files: bool) -> View:
    """Return the `View` of training images; `data` and `augment` are sections of the config.

    Encoded files (uint8, 1-D) or arrays (H, W, C) become (image_size, image_size, C). The last axis is missing if an
    RGB image is converted to gray.
    """
    fill = mean_colour(data)
    erasing: list[BatchOperation] = []
    if augment.erasing:
        erasing.append(functools.partial(erase, probability=augment.erasing, colour=fill))
    recolours = augment.color_jitter > 0 or augment.hue > 0 or augment.auto != "none"
    if are_files or recolours or augment.crop == "resized":
        rows = train_rows(data, augment, are_files, recolours, fill)
        return View(rows, erasing, decoding=(1 if augment.crop == "resized" else DECODING) if are_files else 0)
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
        return View([vision.Decode(), *resize_and_crop(data), *to_gray(data)], [], decoding=DECODING)
    return View([], [functools.partial(apply_each, operations=resize_and_crop(data))])


def train_rows(
    data: DataConfig, augment: AugmentConfig, are_files: bool, recolours: bool, fill: tuple[int, ...]
) -> list[Any]:
    """Return the operators for one training image.

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
    if augment.color_jitter or augment.hue:
        jitter = augment.color_jitter
        rows.append(vision.RandomColorAdjust(jitter, jitter, jitter, augment.hue))
    if augment.auto == "randaugment":
        magnitude, deviation = resolved(augment.magnitude), resolved(augment.magnitude_std)
        operations = randaugment(magnitude, fill, resolved(augment.probability), deviation)
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


def randaugment(
    magnitude: int, fill: tuple[int, ...], probability: float = 1.0, deviation: float = 0.0
) -> list[Choice]:
    """Return the choices of RandAugment (Cubuk et al., arxiv.org/abs/1909.13719, table 6) at a magnitude of 0..30.

    `probability` and `deviation` are extensions of timm (`rand-m9-mstd0.5`), with which MindCV trains too. Each
    operation is applied with the probability. The magnitude is normally distributed and clipped to 0..30.

    MindSpore's RandAugment and TrivialAugmentWide (2.7.0) are not used: their translations move the image completely
    out of the frame, so 2 of their 14 operations return a blank image.
    """
    strongest = {"shear": 0.3, "translate": 150 / 331, "rotate": 30.0, "enhance": 0.9, "bits": 4}
    return [
        [(operation, applied * probability) for operation, applied in choice]
        for value in magnitudes(magnitude, deviation)
        for choice in choices(value / STEPS, strongest, fill)
    ]


def magnitudes(mean: float, deviation: float) -> list[float]:
    """Return equally likely magnitudes that are distributed normally and clipped to 0..STEPS."""
    if not deviation:
        return [mean]
    normal = NormalDist(mean, deviation)
    values = (normal.inv_cdf((number + 0.5) / MAGNITUDES) for number in range(MAGNITUDES))
    return [min(max(value, 0.0), float(STEPS)) for value in values]


def trivialaugment(fill: tuple[int, ...]) -> list[Choice]:
    """Return the choices of TrivialAugment's wide space (Mueller and Hutter, arxiv.org/abs/2103.10158, table 3).

    The paper's translations of up to 32 pixels become 32/224 of the image's side.
    """
    strongest = {"shear": 0.99, "translate": 32 / 224, "rotate": 135.0, "enhance": 0.99, "bits": 6}
    return [choice for step in range(STEPS + 1) for choice in choices(step / STEPS, strongest, fill)]


def choices(strength: float, strongest: dict[str, float], fill: tuple[int, ...]) -> list[Choice]:
    """Return RandAugment's 14 operations at a `strength` of 0..1; `strongest` has their parameters at strength 1.

    Each operation is there twice: once for each direction, if it has two directions. Images are square. A shear holds
    the upper edge or the left edge, as torchvision's `center=[0, 0]` in `autoaugment.py` does. MindSpore's shear holds
    the centre, so a translation is added.
    """
    operations: list[Any] = []
    for sign in (-1, 1):
        slope = sign * strength * strongest["shear"]
        angle = math.degrees(math.atan(slope))
        shift, factor = sign * strength * strongest["translate"], 1 + sign * strength * strongest["enhance"]
        operations += [
            vision.Affine(0.0, [-slope / 2, 0.0], 1.0, [angle, 0.0], fill_value=fill),
            vision.Affine(0.0, [0.0, -slope / 2], 1.0, [0.0, angle], fill_value=fill),
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
    short_side = round(data.image_size / data.crop_fraction)
    antialiased, aliased = KERNELS[data.interpolation]
    if data.antialias:
        resizing = functools.partial(resize, short_side=short_side, side=data.image_size, kernel=antialiased)
        return [resizing, functools.partial(crop_centre, side=data.image_size)]
    return [vision.Resize(short_side, aliased), vision.CenterCrop(data.image_size)]


def resize(image: np.ndarray, short_side: int, side: int, kernel: Image.Resampling) -> np.ndarray:
    """Return the centre of an image whose short side is resized to `short_side` pixels, for `crop_centre` to crop.

    The image is uint8 (H, W, C), or a batch uint8 (N, H, W, C). The resizing is torchvision's `Resize(short_side)` of a
    Pillow image: the long side is rounded down. The centre has 0 to 3 rows and columns more than `side`, the remainder
    modulo 4, on which the rounding of the crop's offset depends. Equal borders are cut off on opposite sides, so the
    image may be turned before the crop. Pillow computes only these pixels. It rounds the position of the
    centre, so 0 to 8 % of the values (measured) differ by 1 from the crop of the whole resized image.
    """
    height, width = image.shape[-3:-1]
    short = min(height, width)
    tall, wide = (int(short_side * length / short) for length in (height, width))
    if (tall, wide) == (height, width):
        return image
    if image.ndim == 4:
        return np.stack([resize(one, short_side, side, kernel) for one in image])
    rows, columns = (side + (length - side) % 4 for length in (tall, wide))
    top, left = (tall - rows) // 2, (wide - columns) // 2
    down, across = height / tall, width / wide  # pixels of the image for each pixel of the resized image
    box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
    source = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(source.resize((columns, rows), kernel, box)).reshape(rows, columns, -1)


def crop_centre(image: np.ndarray, side: int) -> np.ndarray:
    """Return the centre (side, side) of an image (H, W, C) or of a batch (N, H, W, C), as torchvision's `CenterCrop`.

    Python's `round`, which torchvision uses, rounds an offset of half a pixel to the even number.
    """
    top, left = (round((length - side) / 2) for length in image.shape[-3:-1])
    return np.ascontiguousarray(image[..., top : top + side, left : left + side, :])


def to_gray(data: DataConfig) -> list[Any]:
    """Return the operator from RGB to luminance if the network has one input channel, otherwise no operator."""
    return [vision.ConvertColor(vision.ConvertMode.COLOR_RGB2GRAY)] if data.channels == 1 else []


def mean_colour(data: DataConfig) -> tuple[int, ...]:
    """Return data.mean as three integers of 0..255."""
    return tuple(round(value * 255) for value in (resolved(data.mean) * 3)[:3])


def apply_each(images: np.ndarray, generator: Optional[np.random.Generator], operations: list[Any]) -> np.ndarray:
    """Apply deterministic operators to a batch; they do not use the `generator`."""
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
