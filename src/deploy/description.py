"""The description beside an artefact, PATH.json: all that an application needs, and what was proven of the file."""

import hashlib
import json
from pathlib import Path
from typing import Literal, Optional

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src.errors import UserError
from src.files import write_json
from src.versions import versions

FORMATS = ("mindir", "onnx", "ms", "air")  # and endings of the files
VERSION = 1  # of this description


class Part(BaseModel):
    """A group of keys: unknown and missing ones are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Input(Part):
    name: str
    kind: Literal["image", "tensor"]
    shape: list[int] = Field(description="with the batch; fixed")
    dtype: Literal["uint8", "float32"]
    layout: Literal["NHWC", "NCHW"]
    range: str = Field(description="what the numbers mean")
    colour: Literal["RGB", "gray"]


class Output(Part):
    name: str
    shape: list[int] = Field(description="batch, classes")
    meaning: Literal["logits", "probabilities"]


class Preprocessing(Part):
    inside_the_file: bool = Field(description="whether the file itself normalises; resizing is always outside")
    mean: list[float] = Field(description="per channel, of pixels scaled to 0..1")
    std: list[float]
    image_size: int = Field(description="pixels, height and width after the centre crop")
    crop_fraction: float = Field(description="image_size / short side before the centre crop")


class Source(Part):
    file: str
    sha256: str
    epoch: int
    top1: Optional[float] = Field(description="best of the run on its test split, fraction of 1")
    config: dict = Field(description="the run's resolved settings")


class RuntimeCheck(Part):
    runtime: str
    version: str
    max_difference: float = Field(description="to the checkpoint's logits, of probabilities to their logarithms")
    agreement: float = Field(description="share of the images with the checkpoint's top-1 class")
    top1: float = Field(description="of the file itself, fraction of 1")


class Verification(Part):
    images: int
    checkpoint_top1: float = Field(description="on the same images")
    runtimes: list[RuntimeCheck] = Field(description="each runtime that the file was run on; none for AIR")


class Description(Part):
    """The content of PATH.json."""

    version: Literal[1]
    format: Literal["mindir", "onnx", "ms", "air"]
    mindir_version: Optional[int] = Field(description="null for other formats")
    precision: Literal["float32", "float16", "int8"]
    sha256: str = Field(description="of the artefact")
    size: int = Field(description="of the artefact, bytes")
    input: Input
    output: Output
    classes: list[str] = Field(description="names, in the order of the outputs")
    preprocessing: Preprocessing
    checkpoint: Source
    verification: Verification
    made_by: dict[str, str] = Field(description="versions of what wrote the file")


def describe(checkpoint, artefact, graph_input, graph_output, options, verification):
    """Return the `Description` of the file `artefact`, which was made from `checkpoint`.

    `graph_input` and `graph_output` are the graph's values, `options` the exporter's.
    """
    data = checkpoint.config.data
    takes_images = options.input == "image"
    return Description(
        version=VERSION,
        format=options.format,
        mindir_version=options.mindir_version if options.format == "mindir" else None,
        precision=options.precision,
        sha256=sha256(artefact),
        size=Path(artefact).stat().st_size,
        input=Input(
            name=graph_input.name,
            kind=options.input,
            shape=list(graph_input.shape),
            dtype=graph_input.dtype,
            layout="NHWC" if takes_images else "NCHW",
            range="0 to 255" if takes_images else "(pixel / 255 - mean) / std",
            colour="RGB" if data.channels == 3 else "gray",
        ),
        output=Output(
            name=graph_output.name,
            shape=list(graph_output.shape),
            meaning="logits" if options.logits else "probabilities",
        ),
        classes=checkpoint.classes,
        preprocessing=Preprocessing(
            inside_the_file=takes_images,
            mean=data.mean,
            std=data.std,
            image_size=data.image_size,
            crop_fraction=data.crop_fraction,
        ),
        checkpoint=Source(
            file=checkpoint.path.name,
            sha256=sha256(checkpoint.path),
            epoch=checkpoint.epoch,
            top1=checkpoint.best.get("top1"),
            config=checkpoint.config.model_dump(),
        ),
        verification=verification,
        made_by=versions(),
    )


def write_description(description, path):
    write_json(description.model_dump(), path)


def read_description(artefact):
    """Return the `Description` of the file `artefact`, which must be the described one; else it is a `UserError`."""
    artefact = Path(artefact)
    if not artefact.is_file():
        raise UserError(f"{artefact}: no such file")
    path = Path(f"{artefact}.json")
    if not path.is_file():
        raise UserError(f"{artefact}: was not written by export.py, or its description {path.name} is not beside it")
    try:
        description = Description.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{path}: {key}: {problem['msg']}: is not a description by export.py") from None
    except ValueError:
        raise UserError(f"{path}: is damaged: not JSON") from None
    if artefact.suffix != f".{description.format}":
        raise UserError(f"{path}: describes a file of format {description.format}, not {artefact.name}")
    if sha256(artefact) != description.sha256:
        raise UserError(f"{artefact}: is damaged, or another file than {path.name} describes: its SHA-256 differs")
    return description


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
