"""Classify an image with ONNX Runtime, without MindSpore: python classify.py MODEL.onnx IMAGE [PIXELS.npy]

`export.py --format onnx` writes the model and MODEL.onnx.json, which describes its input. PIXELS.npy receives the
pixels after preprocessing, so that you can compare them with the export's golden image.
This program needs: pip install onnxruntime pillow numpy
"""

import json
import math
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def main(model, image, pixels_path=None):
    with open(f"{model}.json", encoding="utf-8") as file:
        description = json.load(file)
    pixels = preprocess(image, description)
    if pixels_path:
        np.save(pixels_path, pixels)
    session = onnxruntime.InferenceSession(model)
    scores = session.run(None, {description["input"]["name"]: make_input(pixels, description)})[0][0]
    if description["output"]["meaning"] == "logits":
        exponentials = np.exp(scores - scores.max())
        scores = exponentials / exponentials.sum()
    threshold = (description.get("confidence") or {}).get("threshold", 0)
    if scores.max() < threshold:
        print(f"not sure: no probability reaches {threshold:.6f}")
    for i in np.argsort(-scores)[:5]:
        print(f"{scores[i]:.6f}  {description['classes'][i]}")


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


def make_input(pixels, description):
    """Return the model's input: the image as often as the batch size says, because the file fixes it."""
    batch = np.repeat(pixels[None], description["input"]["shape"][0] or 1, axis=0)
    if description["input"]["kind"] == "image":
        return batch
    mean, std = (np.array(description["preprocessing"][key]) for key in ("mean", "std"))
    return ((batch / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
