"""The golden image: an image file with the pixels and probabilities that an application must compute for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Union

import numpy as np
from PIL import Image
from pydantic import Field

from src.data.formats import format_of
from src.deploy.description import Part, sha256
from src.errors import UserError
from src.evaluation.evaluate import make_eval_step
from src.evaluation.output import predict_files
from src.files import write_json
from src.weights.checkpoint import OpenCheckpoint

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}  # the formats that every example program reads
MAX_PIXEL_DIFFERENCE, MAX_PROBABILITY_DIFFERENCE = 1.0, 0.02


class Golden(Part):
    """The content of PATH.golden.json."""

    version: Literal[1]
    sha256: str = Field(description="SHA-256 of the exported file that this belongs to")
    image: str = Field(description="file name of the image, beside this file")
    pixels: str = Field(description="file name of the pixels after preprocessing, beside this file: binary PPM or PGM")
    probabilities: list[float] = Field(description="of the checkpoint, in the order of the classes")
    max_pixel_difference: float = Field(description="mean difference in grey levels that an application may have")
    max_probability_difference: float = Field(description="largest difference that an application may have")


@dataclass(frozen=True)
class GoldenImage:
    """An image file with what the checkpoint computes for it."""

    content: bytes  # the file
    suffix: str  # a value of SUFFIXES
    pixels: np.ndarray  # uint8 (H, W, C), the input of the network
    probabilities: np.ndarray  # float64 (classes)


def make_golden(opened: OpenCheckpoint, path: Union[str, Path], temperature: float = 1.0) -> GoldenImage:
    """Return the `GoldenImage` of an image file: the evaluation of eval.py applied to it, with a temperature.

    Raise a `UserError` if the file is missing or damaged, or is neither JPEG nor PNG.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--golden {path}: no such file")
    content = path.read_bytes()
    kind = format_of(content[:12])
    if kind not in SUFFIXES:
        raise UserError(f"--golden {path}: wrong format (found {kind or 'no image'}, expected {' or '.join(SUFFIXES)})")
    # PyNative mode, because compiling takes longer than running one image.
    step = make_eval_step(opened.classifier, compiled=False)
    (pixels,), (probabilities,) = predict_files(step, opened.config, opened.checkpoint.classes, [str(path)])
    powers = probabilities ** (1 / temperature)  # which, normalised, are softmax(logits / temperature)
    return GoldenImage(content, SUFFIXES[kind], pixels, powers / powers.sum())


def write_golden(golden: GoldenImage, written: Path, output: Path) -> dict[Path, Path]:
    """Write PATH.golden.json, PATH.golden.jpg or .png, and PATH.golden.ppm or .pgm, where PATH is the file `output`.

    The exported file is `written` still, in a temporary folder, and the golden image's files are written beside it.
    Return {temporary: final} names.
    """
    gray = golden.pixels.shape[-1] == 1
    endings = golden.suffix, ".pgm" if gray else ".ppm", ".json"
    image, pixels, record = (written.with_name(f"golden{ending}") for ending in endings)
    names = {file: Path(f"{output}.{file.name}") for file in (image, pixels, record)}
    image.write_bytes(golden.content)
    Image.fromarray(golden.pixels[..., 0] if gray else golden.pixels).save(pixels, "PPM")
    content = Golden(
        version=1,
        sha256=sha256(written),
        image=names[image].name,
        pixels=names[pixels].name,
        probabilities=golden.probabilities.tolist(),
        max_pixel_difference=MAX_PIXEL_DIFFERENCE,
        max_probability_difference=MAX_PROBABILITY_DIFFERENCE,
    )
    write_json(content.model_dump(), record)
    return names
