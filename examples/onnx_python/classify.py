"""Classify an image with ONNX Runtime, without MindSpore: python classify.py MODEL.onnx IMAGE [PIXELS.npy]

`export.py --format onnx` writes the model and MODEL.onnx.json, which describes its input. PIXELS.npy receives the
pixels after preprocessing, so that you can compare them with the export's golden image.
This program needs: pip install onnxruntime pillow numpy
"""

import json
import sys

import numpy as np
import onnxruntime
from preprocess import preprocess


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


def make_input(pixels, description):
    """Return the model's input: the image as often as the batch size says, because the file fixes it."""
    batch = np.repeat(pixels[None], description["input"]["shape"][0] or 1, axis=0)
    if description["input"]["kind"] == "image":
        return batch
    mean, std = (np.array(description["preprocessing"][key]) for key in ("mean", "std"))
    return ((batch / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
