"""From a checkpoint to a file for a device, and the proof that the file computes what the checkpoint does."""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.deploy.artefact import SMALLEST
from src.deploy.description import RuntimeCheck, Verification, describe, write_description
from src.deploy.lite import Lite, find_lite, need_lite
from src.deploy.mindir import port_names, read_mindir, write_mindir
from src.deploy.onnx_format import write_onnx
from src.deploy.passes import halve_weights, optimize, pool_means, separate_padding
from src.deploy.quantize import quantize_onnx, write_lite_calibration
from src.deploy.runtimes import MindSporeRuntime, OnnxRuntime, lite_runtime
from src.engine.evaluate import log_softmax, predict
from src.engine.step import make_eval_step
from src.errors import UserError

MAX_DIFFERENCE = 1e-4  # between the logits of checkpoint and file, in float32 …
MAX_SHARE = 1e-5  # … or of the largest logit, where that is more: logits of 100 are float32 numbers 8e-6 apart
MIN_AGREEMENT = 0.999  # share of images with the same top-1 class, in float32
INPUTS = ("image", "tensor")
PRECISIONS = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Options:
    """What is asked of an export; export.py explains them."""

    format: str
    input: str = "image"
    logits: bool = False
    batch: int = 1
    precision: str = "float32"
    mindir_version: int = 1
    max_drop: float = 1.0  # percent points of top-1 that float16 and int8 may lose
    lite_python: Optional[str] = None


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


def check_target(options):
    """Raise a `UserError` where the device or the runtime that a format needs is not there."""
    device = ms.get_context("device_target")
    if options.format == "air" and device != "Ascend":
        raise UserError(f"--format air: is written on Ascend only, and this run is on {device}")
    if options.format == "ms":
        need_lite(options.lite_python)
    elif options.lite_python is not None:
        find_lite(options.lite_python)


def export(checkpoint, source, classifier, test_loader, output, options, calibration=None):
    """Write the file `output` and its description `output`.json; return the `Description`.

    `classifier` is the checkpoint's network with MindSpore's own operators, `source` the checkpoint's path;
    `test_loader` gives the images to verify on, `calibration` those that int8 measures its ranges on, both in batches
    of `options.batch`. A failed verification is a `UserError` and leaves nothing behind.
    """
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
        verification = verify(checkpoint.config.runtime, classifier, written, test_loader, options)
        description = describe(checkpoint, source, written, graph.input, graph.output, options, verification)
        sidecar = Path(folder) / "model.json"
        write_description(description, sidecar)
        os.chmod(written, 0o644)  # MindSpore leaves it read-only
        os.replace(written, output)
        os.replace(sidecar, f"{output}.json")
    return description


def deployment_graph(plain, options):
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


def name_ports(graph, input_name, output_name):
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


def runtimes(path, options):
    """Return the runtimes that the file must prove itself on."""
    if options.format == "air":
        return []  # nothing here loads it
    if options.format == "onnx":
        return [OnnxRuntime(path)]
    python = find_lite(options.lite_python)
    if options.format == "ms":
        return [lite_runtime(path, python)]
    if options.mindir_version == 1 and python is not None:
        return [MindSporeRuntime(path), lite_runtime(path, python)]
    return [MindSporeRuntime(path)]


def verify(runtime, classifier, path, loader, options):
    """Run a file on every runtime that it is for, beside the classifier, on the loader's images.

    `runtime` is the config's section. Return the `Verification`; a difference that is too large is a `UserError`.
    """
    step = make_eval_step(classifier.set_train(False), compiled=runtime.mode == "graph")
    targets = runtimes(path, options)
    largest, allowed = [0.0] * len(targets), MAX_DIFFERENCE
    agreed, right, images, right_before = [0] * len(targets), [0] * len(targets), 0, 0
    for batch, labels, logits in predict(step, loader):
        count = len(labels)
        filled = np.concatenate([batch, np.repeat(batch[-1:], options.batch - count, axis=0)])
        x = filled if options.input == "image" else classifier.preprocess(ms.Tensor(filled)).asnumpy()
        expected = logits if options.logits else np.maximum(log_softmax(logits), np.log(SMALLEST))
        allowed = max(allowed, MAX_SHARE * float(np.abs(logits).max()))
        images += count
        right_before += int((logits.argmax(1) == labels).sum())
        for i, target in enumerate(targets):
            scores = log_scores(target.run(x)[:count], options)
            if not np.isfinite(scores).all():
                raise UserError(f"verification failed: on {target.name} the output is not finite; no file was written")
            largest[i] = max(largest[i], float(np.abs(scores - expected).max()))
            agreed[i] += int((scores.argmax(1) == logits.argmax(1)).sum())
            right[i] += int((scores.argmax(1) == labels).sum())
    checks = [
        RuntimeCheck(
            runtime=target.name,
            version=target.version,
            max_difference=largest[i],
            agreement=agreed[i] / images,
            top1=right[i] / images,
        )
        for i, target in enumerate(targets)
    ]
    for target in targets:
        target.close()
    verification = Verification(images=images, checkpoint_top1=right_before / images, runtimes=checks)
    for check in checks:
        judge(check, verification, options, allowed)
    return verification


def log_scores(output, options):
    """Return logits as they are and probabilities as their logarithms, float64."""
    output = output.astype(np.float64)
    return output if options.logits else np.log(np.maximum(output, SMALLEST))


def judge(check, verification, options, allowed):
    """Raise a `UserError` where results are too far from the checkpoint's: logits by more than `allowed`."""
    where = f"verification failed on {check.runtime} {check.version}, {verification.images} images"
    if options.precision != "float32":
        drop = 100 * (verification.checkpoint_top1 - check.top1)
        if drop > options.max_drop:
            raise UserError(
                f"{where}: {options.precision} loses {drop:.2f} points of top-1, allowed are {options.max_drop:g} "
                "(--max-drop); no file was written"
            )
        return
    if check.max_difference > allowed:
        raise UserError(
            f"{where}: file and checkpoint differ by {check.max_difference:.2g}, allowed is {allowed:.2g}; "
            "no file was written"
        )
    if check.agreement < MIN_AGREEMENT:
        raise UserError(
            f"{where}: {1 - check.agreement:.2%} have another top-1 class than with the checkpoint, allowed are "
            f"{1 - MIN_AGREEMENT:.1%}; no file was written"
        )
