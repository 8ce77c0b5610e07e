"""Classify an image with ONNX Runtime, without MindSpore: python classify.py MODEL.onnx IMAGE

`export.py --format onnx` writes the model, for batches of one image, and MODEL.onnx.json, which describes its input.
This program needs: pip install onnxruntime pillow numpy
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model, image):
    with open(f"{model}.json", encoding="utf-8") as file:
        description = json.load(file)
    size, fraction = description["preprocessing"]["image_size"], description["preprocessing"]["crop_fraction"]
    photo = Image.open(image).convert("RGB" if description["input"]["colour"] == "RGB" else "L")
    side = min(photo.size) * fraction
    left, top = (photo.width - side) / 2, (photo.height - side) / 2
    photo = photo.resize((size, size), Image.BILINEAR, (left, top, left + side, top + side))
    pixels = np.asarray(photo).reshape(1, size, size, -1)
    scores = onnxruntime.InferenceSession(model).run(None, {description["input"]["name"]: pixels})[0][0]
    for i in np.argsort(-scores)[:5]:
        print(f"{scores[i]:.6f}  {description['classes'][i]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
