"""From a checkpoint to a file for a device, which is verified before it gets its name."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Optional, Union

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.data.loading import Loader
from src.deploy.description import Description, describe, write_description
from src.deploy.graph.graph import Graph
from src.deploy.graph.mindir import port_names, read_mindir, write_mindir
from src.deploy.graph.onnx_format import write_onnx
from src.deploy.graph.passes import halve_weights, optimize, pool_means, separate_padding
from src.deploy.options import Options
from src.deploy.quantize import quantize_onnx, write_lite_calibration
from src.deploy.runtimes.lite import Lite, find_lite, need_lite
from src.deploy.verify import verify
from src.errors import UserError
from src.weights.checkpoint import OpenCheckpoint


class Deployed(nn.Cell):
    """The classifier as it is shipped: probabilities or logits, of uint8 images or of normalised float32 tensors."""

    def __init__(self, classifier, options):
        super().__init__()
        self.network = classifier
        self.takes_images = options.input == "image"
        self.logits = options.logits

    def construct(self, x):
        scores = self.network(x) if self.takes_images else self.network.classify(x)
        return scores if self.logits else ops.softmax(scores, -1)


def check_target(options: Options) -> None:
    """Raise a `UserError` where the device or the runtime that a format needs is not there."""
    device = ms.get_context("device_target")
    if options.format == "air" and device != "Ascend":
        raise UserError(f"--format air: is written on Ascend only, and this run is on {device}")
    if options.format == "ms":
        need_lite(options.lite_python)
    elif options.lite_python is not None:
        find_lite(options.lite_python)


def export(
    opened: OpenCheckpoint,
    test_loader: Loader,
    output: Union[str, Path],
    options: Options,
    calibration: Optional[Iterable[np.ndarray]] = None,
) -> Description:
    """Write the file `output` and its description `output`.json; return the `Description`.

    The network of `opened` has MindSpore's own operators. `test_loader` gives the images to verify on, `calibration`
    the images on which int8 measures its ranges, both in batches of `options.batch`. A failed verification is a
    `UserError` and leaves nothing behind.
    """
    checkpoint, classifier = opened.checkpoint, opened.classifier
    output = Path(output)
    data = checkpoint.config.data
    image = np.zeros((options.batch, data.image_size, data.image_size, data.channels), np.uint8)
    example = ms.Tensor(image) if options.input == "image" else classifier.preprocess(ms.Tensor(image))
    output.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that moving it there is one step and a failed file never has the asked name.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}-") as folder:
        plain, written = Path(folder) / "plain.mindir", Path(folder) / f"model.{options.format}"
        deployed = Deployed(classifier, options).set_train(False)
        ms.export(deployed, example, file_name=str(plain), file_format="MINDIR")
        graph = deployment_graph(plain, options)
        if options.format == "air":
            ms.export(deployed, example, file_name=str(written), file_format="AIR")
        else:
            write(graph, plain, written, output, options, calibration)
        verification = verify(opened.config.runtime, classifier, written, test_loader, options)
        description = describe(checkpoint, written, graph.input, graph.output, options, verification)
        sidecar = Path(folder) / "model.json"
        write_description(description, sidecar)
        os.chmod(written, 0o644)  # MindSpore leaves it read-only
        os.replace(written, output)
        os.replace(sidecar, f"{output}.json")
    return description


def deployment_graph(plain: Path, options: Options) -> Graph:
    """Return the graph of MindSpore's own export `plain`, made faster and with telling names.

    MindSpore's own formats are its own files: their graph only tells their names.
    """
    graph = read_mindir(plain)
    if options.format == "air" or (options.format == "mindir" and options.mindir_version == 3):
        name_ports(graph, *port_names(plain))
        return graph
    optimize(graph)
    if options.precision == "float16" and options.format != "ms":
        halve_weights(graph)
    name_ports(graph, options.input, "logits" if options.logits else "probabilities")
    return graph


def name_ports(graph: Graph, input_name: str, output_name: str) -> None:
    """Name the graph's input and output."""
    old_input, old_output = graph.input.name, graph.output.name
    graph.input = replace(graph.input, name=input_name)
    graph.output = replace(graph.output, name=output_name)
    for node in graph.nodes:
        node.inputs = [input_name if name == old_input else name for name in node.inputs]
        node.outputs = [graph.output if value.name == old_output else value for value in node.outputs]


def write(graph, plain, path, output, options, calibration):
    """Write the graph to `path`, which becomes `output`, in the asked format; `plain` is MindSpore's export of it."""
    if options.format == "onnx":
        write_onnx(graph, path)
        if options.precision == "int8":
            quantize_onnx(path, calibration)
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


def convert_int8(graph, path, output, options, calibration):
    """Convert to an int8 .ms file; a Lite that cannot load its own result is a `UserError` with what a newer one needs.

    The calibration set and the converter's configuration stay beside `output`.
    """
    folder = Path(f"{output}.int8")
    settings = write_lite_calibration(graph, calibration, folder)
    with Lite(need_lite(options.lite_python)) as lite:
        try:
            lite.convert(folder / "model.mindir", path, config=settings)
            lite.load(path)
        except UserError as error:
            raise UserError(
                f"MindSpore Lite {lite.version} cannot make and load this int8 model ({error}); with a newer one: "
                f"converter_lite --fmk=MINDIR --modelFile={folder}/model.mindir --outputFile={output.with_suffix('')} "
                f"--inputDataFormat=NCHW --configFile={folder}/int8.cfg"
            ) from None
