"""From a photo to the pixels that the network sees: the steps of `preprocessing` in the description of export.py.

This module needs: pip install pillow numpy
"""

import math

import numpy as np
from PIL import Image, ImageOps

KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(path, description):
    """Return the pixels of an image file that the network sees, uint8 (H, W, C)."""
    wanted = description["preprocessing"]
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    size = wanted["image_size"]
    short = round(size / wanted["crop_fraction"])
    width, height = (side * short // min(image.size) for side in image.size)  # rounded down, as the description says
    # Descriptions from before version 0.2.0 do not name the interpolation: it was bilinear, without antialiasing.
    if wanted.get("antialias", False):
        image = image.resize((width, height), KERNELS[wanted["interpolation"]])
    else:
        pixels, is_bicubic = np.asarray(image), wanted.get("interpolation") == "bicubic"
        pixels = resize_without_antialiasing(pixels, height, 0, is_bicubic)
        pixels = resize_without_antialiasing(pixels, width, 1, is_bicubic)
        image = Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
    rounding = math.floor if wanted.get("crop_rounding", "down") == "down" else round  # round: halves to the even
    left, top = rounding((width - size) / 2), rounding((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image.convert("RGB" if description["input"]["colour"] == "RGB" else "L")).reshape(size, size, -1)


def resize_without_antialiasing(pixels, length, axis, is_bicubic):
    """Return an image with another length of an axis; each new pixel is made of 2 or 4 neighbours, as in OpenCV."""
    old = pixels.shape[axis]
    place = (np.arange(length) + 0.5) * old / length - 0.5
    resized = 0.0
    for offset in range(-1, 3):
        neighbour = np.floor(place) + offset
        x = np.abs(place - neighbour)
        if is_bicubic:  # Keys' kernel with a = -0.75
            weight = np.where(x < 1, (1.25 * x - 2.25) * x**2 + 1, -0.75 * (((x - 5) * x + 8) * x - 4))
        else:
            weight = np.maximum(0, 1 - x)
        weight = np.expand_dims(weight, tuple(i for i in range(3) if i != axis))
        resized = resized + weight * pixels.take(np.clip(neighbour, 0, old - 1).astype(int), axis)
    return resized
