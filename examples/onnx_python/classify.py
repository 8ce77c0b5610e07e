"""Classify an image with ONNX Runtime, without MindSpore: python classify.py MODEL.onnx IMAGE

The model is an export of `export.py --format onnx` for one image; MODEL.onnx.json beside it says what it takes.
Needs: pip install onnxruntime pillow numpy
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model, image):
    with open(f"{model}.json", encoding="utf-8") as file:
        about = json.load(file)
    size, fraction = about["preprocessing"]["image_size"], about["preprocessing"]["crop_fraction"]
    photo = Image.open(image).convert("RGB" if about["input"]["colour"] == "RGB" else "L")
    side = min(photo.size) * fraction
    left, top = (photo.width - side) / 2, (photo.height - side) / 2
    photo = photo.resize((size, size), Image.BILINEAR, (left, top, left + side, top + side))
    pixels = np.asarray(photo).reshape(1, size, size, -1)
    scores = onnxruntime.InferenceSession(model).run(None, {about["input"]["name"]: pixels})[0][0]
    for i in np.argsort(-scores)[:5]:
        print(f"{scores[i]:.6f}  {about['classes'][i]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
