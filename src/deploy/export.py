"""Export a checkpoint to a file for a device; the file is verified before it gets its final name."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Optional, Union

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.data.loading import Loader
from src.deploy.confidence import fit_confidence
from src.deploy.description import EXTENSIONS, Description, Split, describe, metadata_of, sha256, write_description
from src.deploy.golden import make_golden, write_golden
from src.deploy.graph.graph import Graph
from src.deploy.graph.int8 import fill_channels
from src.deploy.graph.mindir import port_names, read_mindir, write_mindir
from src.deploy.graph.ncnn_format import optimize_for_ncnn, write_ncnn
from src.deploy.graph.onnx_format import write_onnx
from src.deploy.graph.passes import halve_weights, optimize, pool_means, separate_padding
from src.deploy.options import ONNX_FORMATS, Options, check_images
from src.deploy.quantize import OnnxQuantizer, quantize_within_limits, write_lite_calibration
from src.deploy.runtimes.lite import Lite, find_lite, need_lite
from src.deploy.verify import Verifier, expected_outputs
from src.deploy.web.ort_web import find_ort_web
from src.deploy.web.page import write_page
from src.errors import UserError
from src.files import naming, publish
from src.models.classifier import Classifier
from src.weights.checkpoint import OpenCheckpoint

INT8_CHANNELS = 16  # channels that ONNX Runtime's int8 kernel for depthwise convolutions takes at once


class Deployed(nn.Cell):
    """The classifier with the input and output of the exported file.

    It takes uint8 images or normalised float32 tensors, and outputs logits, or probabilities with a `temperature`.
    """

    def __init__(self, classifier: Classifier, options: Options, temperature: float = 1.0) -> None:
        super().__init__()
        self.network = classifier
        self.takes_images = options.input == "image"
        self.logits = options.logits
        self.scale = 1 / temperature

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        scores = self.network(x) if self.takes_images else self.network.classify(x)
        if self.scale != 1:
            scores = scores * self.scale
        return scores if self.logits else ops.softmax(scores, -1)


def check_target(options: Options) -> None:
    """Raise a `UserError` if the device or the runtime that the format needs is missing."""
    device = ms.get_context("device_target")
    if options.format == "air" and device != "Ascend":
        raise UserError(f"--format air: needs another device (found {device}, expected Ascend)")
    if options.format == "web":
        find_ort_web(options.ort_web)
    if options.format == "ms":
        need_lite(options.lite_python)
    elif options.lite_python is not None:
        find_lite(options.lite_python)


def export(
    opened: OpenCheckpoint,
    loader: Loader,
    split: Split,
    output: Union[str, Path],
    options: Options,
    calibration: Iterable[np.ndarray] = (),
    golden: Optional[Union[str, Path]] = None,
) -> Description:
    """Write the file `output` and its description `output`.json; return the `Description`.

    The network of `opened` must have stock operators. `loader` gives the images of `split` for the verification, and
    `calibration` the inputs for int8; both have batches of `options.batch`. A failed verification is a `UserError` and
    leaves no file. `golden` is an image file; `write_golden` says what is written for it.
    """
    checkpoint, config, classifier = opened
    output = Path(output)
    data = config.data
    if options.precision == "int8":
        check_images(len(loader.samples), options.min_images)
    expected = expected_outputs(config.runtime, classifier, loader)
    confidence = fit_confidence(expected, options.keep_right / 100) if options.calibrate else None
    temperature = confidence.temperature if confidence else 1.0
    golden_image = None if golden is None else make_golden(opened, golden, temperature)
    batch = 1 if options.dynamic_batch else options.batch
    image = np.zeros((batch, data.image_size, data.image_size, data.channels), np.uint8)
    example = ms.Tensor(image) if options.input == "image" else classifier.preprocess(ms.Tensor(image))
    output.parent.mkdir(parents=True, exist_ok=True)
    # The temporary folder is beside the output, so that one rename puts a verified file in its place.
    prefix = f".{output.stem}-"
    with naming(output, prefix), tempfile.TemporaryDirectory(dir=output.parent, prefix=prefix) as folder:
        plain, written = Path(folder) / "plain.mindir", Path(folder) / f"model{EXTENSIONS[options.format]}"
        # The network of a page is an ONNX file, which is verified before the page is made of it and its description.
        network = written.with_suffix(".onnx") if options.format == "web" else written
        deployed = Deployed(classifier, options, temperature).set_train(False)
        export_with_mindspore(deployed, example, plain)
        graph = deployment_graph(plain, options)
        if options.format == "air":
            export_with_mindspore(deployed, example, written, "AIR")
        else:
            metadata = metadata_of(checkpoint, config, options, confidence)
            write(graph, plain, network, output, options, calibration, metadata)
        verifier = Verifier(expected, classifier, loader, split, options, temperature)
        quantization = None
        if options.precision == "int8" and options.format in ONNX_FORMATS:
            quantizer = OnnxQuantizer(network.rename(network.with_name("float.onnx")), calibration)
            verification, quantization = quantize_within_limits(quantizer, network, options, verifier.verify)
            other = network.with_name("other.onnx")
            quantizer.write(other, not options.reduce_range, quantization.float_layers)
            check, *_ = verifier.compare(other).runtimes
            quantization = quantization.model_copy(update={"top1_other_range": check.top1})
        else:
            verification = verifier.verify(network)
        ports = graph.input, graph.output
        description = describe(checkpoint, config, network, *ports, options, verification, confidence, quantization)
        if options.format == "web":
            write_page(description, network, written, output.stem, find_ort_web(options.ort_web))
            size = written.stat().st_size
            description = description.model_copy(update={"sha256": sha256(written), "size": size})
        sidecar = Path(folder) / "model.json"
        write_description(description, sidecar)
        names = {written: output, sidecar: Path(f"{output}.json")}
        if description.weights is not None:
            names[written.with_suffix(".bin")] = output.with_suffix(".bin")
        if golden_image is not None:
            names |= write_golden(golden_image, written, output)
        publish(names)
    return description


def export_with_mindspore(network: nn.Cell, example: ms.Tensor, path: Path, file_format: str = "MINDIR") -> None:
    """Write a network, whose input is like `example`, to `path`.

    MindSpore refuses a path with spaces, quotes or letters beyond ASCII, so it gets an open folder by its number.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        ms.export(network, example, file_name=f"/proc/self/fd/{folder}/{path.name}", file_format=file_format)
    finally:
        os.close(folder)


def deployment_graph(plain: Path, options: Options) -> Graph:
    """Read the graph of `plain`, the MindIR file that MindSpore exported; optimise it and name its input and output.

    AIR and MindIR version 3 stay as MindSpore writes them; of their graph only the names and shapes are used.
    """
    graph = read_mindir(plain)
    if options.format == "air" or (options.format == "mindir" and options.mindir_version == 3):
        name_ports(graph, *port_names(plain))
        return graph
    if options.format == "ncnn":
        optimize_for_ncnn(graph)
    else:
        optimize(graph, options.dynamic_batch)
    if options.precision == "int8" and options.format in ONNX_FORMATS:
        fill_channels(graph, INT8_CHANNELS)
    if options.precision == "float16" and options.format not in ("ms", "ncnn"):
        halve_weights(graph)
    name_ports(graph, options.input, "logits" if options.logits else "probabilities")
    return graph


def name_ports(graph: Graph, input_name: str, output_name: str) -> None:
    """Rename the graph's input and output."""
    old_input, old_output = graph.input.name, graph.output.name
    graph.input = replace(graph.input, name=input_name)
    graph.output = replace(graph.output, name=output_name)
    for node in graph.nodes:
        node.inputs = [input_name if name == old_input else name for name in node.inputs]
        node.outputs = [graph.output if value.name == old_output else value for value in node.outputs]


def write(
    graph: Graph,
    plain: Path,
    path: Path,
    output: Path,
    options: Options,
    calibration: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write the graph to `path` in the format of `options`.

    `plain` is the MindIR file that MindSpore exported. `output` is the final path of the file. An ONNX file holds
    `metadata`, also inside a page.
    """
    if options.format in ONNX_FORMATS:
        write_onnx(graph, path, metadata, options.dynamic_batch)
    elif options.format == "ncnn":
        write_ncnn(graph, path, half=options.precision == "float16")
    elif options.format == "ms" and options.precision == "int8":
        convert_int8(graph, path, output, options, calibration)
    elif options.format == "ms":
        source = path.with_suffix(".mindir")
        pool_means(graph)
        write_mindir(graph, source)
        with Lite(need_lite(options.lite_python)) as lite:
            lite.convert(source, path, weight_fp16=options.precision == "float16")
    elif options.mindir_version == 1:
        separate_padding(graph)
        write_mindir(graph, path)
    else:
        os.replace(plain, path)


def convert_int8(graph: Graph, path: Path, output: Path, options: Options, calibration: Iterable[np.ndarray]) -> None:
    """Convert the graph to an int8 .ms file at `path`.

    If MindSpore Lite cannot convert it or load the result, the `UserError` holds the command for a newer converter. The
    calibration set and the converter's configuration stay in `output`.int8.
    """
    folder = Path(f"{output}.int8")
    settings = write_lite_calibration(graph, calibration, folder)
    with Lite(need_lite(options.lite_python)) as lite:
        try:
            lite.convert(folder / "model.mindir", path, config=settings)
            lite.load(path)
        except UserError as error:
            raise UserError(
                f"--precision int8: MindSpore Lite {lite.version} cannot convert and load this model ({error}); with a "
                f"newer version, run in the folder {folder}: converter_lite --fmk=MINDIR --modelFile=model.mindir "
                f"--outputFile=../{output.stem} --inputDataFormat=NCHW --configFile=int8.cfg"
            ) from None
