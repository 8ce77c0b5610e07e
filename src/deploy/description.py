"""The description beside an exported file, PATH.json: what an application needs, and how the file was verified."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src import __version__
from src.errors import UserError
from src.files import write_json
from src.versions import versions

Format = Literal["mindir", "onnx", "ms", "air", "ncnn", "web"]
FORMATS: tuple[str, ...] = get_args(Format)
EXTENSIONS = {**{name: f".{name}" for name in FORMATS}, "ncnn": ".param", "web": ".html"}  # of the files, by format
Split = Literal["val", "test"]  # the splits that verify a file
VERSION: Literal[1] = 1  # of the description's format


class Part(BaseModel):
    """A group of keys; an unknown or missing key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Input(Part):
    name: str
    kind: Literal["image", "tensor"]
    shape: list[Optional[int]] = Field(
        description="fixed; the first number is the batch size, or null if the file takes any number of images"
    )
    dtype: Literal["uint8", "float32"]
    layout: Literal["NHWC", "NCHW"]
    range: str = Field(description="meaning of the numbers")
    colour: Literal["RGB", "gray"]


class Output(Part):
    name: str
    shape: list[Optional[int]] = Field(description="batch size, as of the input; number of classes")
    meaning: Literal["logits", "probabilities"]


class Preprocessing(Part):
    inside_the_file: bool = Field(description="whether the file normalises pixels; the application always resizes")
    mean: list[float] = Field(description="per channel, of pixels scaled to 0..1")
    std: list[float]
    image_size: int = Field(description="height and width in pixels after the centre crop")
    crop_fraction: float = Field(description="image_size / short side before the centre crop")
    # The defaults of the keys below are what files of versions before 0.2.0 need, which do not name them.
    orientation: Literal["exif"] = Field(
        "exif", description="first, the image is turned upright as its EXIF orientation says"
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="of the resizing")
    antialias: bool = Field(
        False,
        description="true: the kernel becomes wider as the image becomes smaller, as in Pillow; false: as in OpenCV",
    )
    short_side: Optional[int] = Field(
        None,
        description="the short side after resizing, in pixels; null: image_size / crop_fraction, rounded half to even",
    )
    long_side_rounding: Literal["down"] = Field(
        "down", description="rounding of the long side after resizing, which keeps the proportions"
    )
    crop_rounding: Literal["down", "half_even"] = Field(
        "down", description="rounding of half the border, which the centre crop cuts off left and above"
    )


class Source(Part):
    file: str
    sha256: str
    epoch: int
    top1: Optional[float] = Field(
        description="best top-1 of the run on the split that it evaluated, as a fraction of 1"
    )
    config: dict[str, Any] = Field(description="the run's resolved settings, with the overrides of the export")


class RuntimeCheck(Part):
    runtime: str
    version: str
    max_difference: float = Field(
        description="largest difference from the checkpoint's logits; for probabilities, of the logarithms"
    )
    agreement: float = Field(description="share of the images with the same top-1 class as the checkpoint")
    top1: float = Field(description="top-1 of the exported file, as a fraction of 1")
    drop_interval: Optional[list[float]] = Field(
        None,
        description="95 % confidence interval of the drop in top-1 from the checkpoint (Bonett and Price, paired), as "
        "fractions of 1; null in files that were written before 0.2.0",
    )


class Verification(Part):
    images: int
    split: Optional[Split] = Field(
        None, description="the split of the images; null in files that were written before 0.2.0"
    )
    checkpoint_top1: float = Field(description="top-1 of the checkpoint on the same images, as a fraction of 1")
    runtimes: list[RuntimeCheck] = Field(description="each runtime that ran the file; empty for AIR")


class Weights(Part):
    sha256: str = Field(description="SHA-256 of the file of weights")
    size: int = Field(description="size of the file of weights in bytes")


class Confidence(Part):
    temperature: float = Field(description="the logits were divided by it; it is inside the last layer of the file")
    fitted_images: int = Field(description="images on which temperature and threshold were fitted")
    tested_images: int = Field(description="other images, on which the keys below were measured with the checkpoint")
    nll_before: float = Field(description="negative log-likelihood of the right class, without the temperature")
    nll_after: float
    ece_before: float = Field(description="expected calibration error, 15 equal intervals; without the temperature")
    ece_after: float
    threshold: float = Field(
        description="an application should say that it is not sure if no probability reaches this threshold"
    )
    kept_right: float = Field(description="share of the right answers that the threshold was fitted to keep")
    tested_kept_right: Optional[float] = Field(
        description="share of the right answers that it keeps; null: no answer was right"
    )
    tested_refused_wrong: Optional[float] = Field(
        description="share of the wrong answers that it refuses; null: no answer was wrong"
    )


class LayerLoss(Part):
    layer: str = Field(description="name of the convolution or matrix product in the file")
    loss: float = Field(description="root mean square of the change of the logits if only this layer is int8")


class Quantization(Part):
    """How the file became int8."""

    reduce_range: bool = Field(description="whether the weights have 7 bits, for processors without VNNI")
    top1: float = Field(description="top-1 of the file, as a fraction of 1")
    top1_other_range: float = Field(description="top-1 of the file that the other value of reduce_range gives")
    lose_most: list[LayerLoss] = Field(description="the layers that lose most as int8, the worst first")
    float_layers: list[str] = Field(
        description="layers that stay float32 because the limits of the export could not be kept with them"
    )
    stem: list[str] = Field(description="layers at the input that stay float32 because this is faster")


class Description(Part):
    """The content of PATH.json."""

    version: Literal[1]
    format: Format
    mindir_version: Optional[int] = Field(description="null for other formats")
    precision: Literal["float32", "float16", "int8"]
    sha256: str = Field(description="SHA-256 of the exported file")
    size: int = Field(description="size of the exported file in bytes")
    weights: Optional[Weights] = Field(
        None, description="ncnn: the file of weights beside the exported file, with the ending .bin"
    )
    input: Input
    output: Output
    classes: list[str] = Field(description="names, in the order of the outputs")
    preprocessing: Preprocessing
    checkpoint: Source
    verification: Verification
    confidence: Optional[Confidence] = Field(None, description="null: the probabilities are not calibrated")
    quantization: Optional[Quantization] = Field(
        None, description="null for files that are not int8 ONNX, and in files that were written before 0.2.0"
    )
    made_by: dict[str, str] = Field(description="versions of the software that wrote the file")


# export.py --help reads this module, so it must not import MindSpore: `Checkpoint` and other types are Any here.
def describe(
    checkpoint: Any,
    config: Any,
    exported: Union[str, Path],
    graph_input: Any,
    graph_output: Any,
    options: Any,
    verification: Verification,
    confidence: Optional[Confidence] = None,
    quantization: Optional[Quantization] = None,
) -> Description:
    """Return the `Description` of the file `exported`, which was written from the `Checkpoint` `checkpoint`.

    `config` is the checkpoint's `Config` with the overrides of the export.
    `graph_input` and `graph_output` are the graph's `Value`s; `options` are the export's `Options`.
    """
    data = config.data
    takes_images = options.input == "image"
    batch = None if options.dynamic_batch else graph_input.shape[0]
    return Description(
        version=VERSION,
        format=options.format,
        mindir_version=options.mindir_version if options.format == "mindir" else None,
        precision=options.precision,
        sha256=sha256(exported),
        size=Path(exported).stat().st_size,
        weights=weights_of(exported) if options.format == "ncnn" else None,
        input=Input(
            name=graph_input.name,
            kind=options.input,
            shape=[batch, *graph_input.shape[1:]],
            dtype=graph_input.dtype,
            layout="NHWC" if takes_images else "NCHW",
            range="0 to 255" if takes_images else "(pixel / 255 - mean) / std",
            colour="RGB" if data.channels == 3 else "gray",
        ),
        output=Output(
            name=graph_output.name,
            shape=[batch, *graph_output.shape[1:]],
            meaning="logits" if options.logits else "probabilities",
        ),
        classes=checkpoint.classes,
        preprocessing=preprocessing_of(data, options),
        checkpoint=Source(
            file=checkpoint.path.name,
            sha256=sha256(checkpoint.path),
            epoch=checkpoint.epoch,
            top1=(checkpoint.best or {}).get("top1"),
            config=config.model_dump(),
        ),
        verification=verification,
        confidence=confidence,
        quantization=quantization,
        made_by=versions(),
    )


def preprocessing_of(data: Any, options: Any) -> Preprocessing:
    """Return the `Preprocessing` of a file; `data` is the section of the config, and `options` are the `Options`."""
    return Preprocessing(
        inside_the_file=options.input == "image",
        mean=data.mean,
        std=data.std,
        image_size=data.image_size,
        crop_fraction=data.crop_fraction,
        interpolation=data.interpolation,
        antialias=data.antialias,
        short_side=round(data.image_size / data.crop_fraction),
        crop_rounding="half_even" if data.antialias else "down",
    )


def metadata_of(checkpoint: Any, config: Any, options: Any, confidence: Optional[Confidence]) -> dict[str, str]:
    """Return what an ONNX file says about itself in `metadata_props`; each value is JSON, except versions and hashes.

    `checkpoint`, `config` and `options` are as in `describe`.
    """
    return {
        "classes": json.dumps(checkpoint.classes, ensure_ascii=False),
        "preprocessing": preprocessing_of(config.data, options).model_dump_json(),
        "colour": "RGB" if config.data.channels == 3 else "gray",
        "output": "logits" if options.logits else "probabilities",
        "threshold": json.dumps(confidence.threshold if confidence else None),
        "checkpoint_sha256": sha256(checkpoint.path),
        "pocketspore": __version__,
    }


def write_description(description: Description, path: Union[str, Path]) -> None:
    """Write a `Description` as JSON."""
    write_json(description.model_dump(), path)


def read_description(exported: Union[str, Path]) -> Description:
    """Return the `Description` of the file `exported`.

    Raise a `UserError` if either file is missing or damaged, or if the description belongs to another file.
    """
    exported = Path(exported)
    if not exported.is_file():
        raise UserError(f"{exported}: no such file")
    path = Path(f"{exported}.json")
    if not path.is_file():
        raise UserError(f"{exported}: its description {path.name} is missing; export.py writes both into one folder")
    try:
        description = Description.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{path}: {key}: {problem['msg']}; expected a description that export.py wrote") from None
    except ValueError:
        raise UserError(f"{path}: is damaged (not JSON)") from None
    if exported.suffix != EXTENSIONS[description.format]:
        raise UserError(
            f"{path}: describes another file than {exported.name} (found format {description.format}, "
            f"expected {format_of(exported)})"
        )
    checksum = sha256(exported)
    if checksum != description.sha256:
        raise UserError(
            f"{exported}: checksum mismatch (found {checksum:.12}…, expected {description.sha256:.12}…): the file is "
            f"damaged, or {path.name} describes another file"
        )
    if description.weights is not None:
        weights = exported.with_suffix(".bin")
        if not weights.is_file():
            raise UserError(
                f"{exported}: its weights {weights.name} are missing; export.py writes both into one folder"
            )
        if weights_of(exported) != description.weights:
            raise UserError(
                f"{weights}: checksum mismatch: the file is damaged, or belongs to another {exported.suffix} file"
            )
    return description


def size_of(exported: Union[str, Path]) -> int:
    """Return the size of an exported file in bytes, together with its file of weights."""
    files = [Path(exported)]
    if files[0].suffix == EXTENSIONS["ncnn"]:
        files.append(files[0].with_suffix(".bin"))
    return sum(file.stat().st_size for file in files)


def weights_of(exported: Union[str, Path]) -> Weights:
    """Return the checksum and the size of the file of weights beside an exported file."""
    path = Path(exported).with_suffix(".bin")
    return Weights(sha256=sha256(path), size=path.stat().st_size)


def format_of(path: Union[str, Path]) -> Optional[str]:
    """Return the format that has a file's extension, or None."""
    return next((name for name, extension in EXTENSIONS.items() if extension == Path(path).suffix), None)


def sha256(path: Union[str, Path]) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
