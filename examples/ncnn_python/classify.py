"""Classify an image with ncnn, without MindSpore: python classify.py MODEL.param IMAGE

`export.py --format ncnn` writes MODEL.param, the weights MODEL.bin, and MODEL.param.json, which describes the input.
This program needs: pip install ncnn pillow numpy
"""

import json
import sys
from pathlib import Path

import ncnn
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "onnx_python"))
from preprocess import preprocess


def main(model, image):
    with open(f"{model}.json", encoding="utf-8") as file:
        description = json.load(file)
    net = ncnn.Net()
    # float32 arithmetic, as the export was verified. ncnn's default on ARM is float16, which is faster.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    for load, path in ((net.load_param, model), (net.load_model, str(Path(model).with_suffix(".bin")))):
        if load(path) != 0:
            sys.exit(f"error: {path}: ncnn cannot load it")
    extractor = net.create_extractor()
    extractor.input(description["input"]["name"], make_input(preprocess(image, description), description))
    scores = np.array(extractor.extract(description["output"]["name"])[1])
    if description["output"]["meaning"] == "logits":
        exponentials = np.exp(scores - scores.max())
        scores = exponentials / exponentials.sum()
    threshold = (description.get("confidence") or {}).get("threshold", 0)
    if scores.max() < threshold:
        print(f"not sure: no probability reaches {threshold:.6f}")
    for i in np.argsort(-scores)[:5]:
        print(f"{scores[i]:.6f}  {description['classes'][i]}")


def make_input(pixels, description):
    """Return the model's input: pixels, or pixels that are normalised here because the file does not do it."""
    height, width, channels = pixels.shape
    kind = ncnn.Mat.PixelType.PIXEL_RGB if channels == 3 else ncnn.Mat.PixelType.PIXEL_GRAY
    mat = ncnn.Mat.from_pixels(np.ascontiguousarray(pixels), kind, width, height)
    wanted = description["preprocessing"]
    if not wanted["inside_the_file"]:
        mat.substract_mean_normalize(
            [255 * mean for mean in wanted["mean"]], [1 / (255 * std) for std in wanted["std"]]
        )
    return mat


if __name__ == "__main__":
    main(*sys.argv[1:])
