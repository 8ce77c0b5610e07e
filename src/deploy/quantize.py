"""Int8 quantisation: measure ranges on calibration images, and round weights and activations to 8 bits."""

import configparser
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Union

import mindspore as ms
import numpy as np

from src.data.loading import Loader
from src.deploy.description import LayerLoss, Quantization, Verification
from src.deploy.graph.graph import Graph
from src.deploy.graph.mindir import write_mindir
from src.deploy.options import Options
from src.deploy.verify import LossError
from src.errors import UserError
from src.files import make_parent, making_folder, write_json
from src.models.classifier import Classifier

WORKER = Path(__file__).with_name("quantize_worker.py")
NAMED_LAYERS = 5  # layers that PATH.json names because they lose most


def full_batches(loader: Loader, classifier: Classifier, kind: str) -> Iterator[np.ndarray]:
    """Yield the loader's batches as inputs of a file, whose `kind` is "image" or "tensor".

    A smaller batch is filled up with its last image: the ranges of activations are the same with it twice.
    """
    for images, _ in loader.epoch():
        filled = np.concatenate([images, np.repeat(images[-1:], loader.batch_size - len(images), axis=0)])
        yield filled if kind == "image" else classifier.preprocess(ms.Tensor(filled)).asnumpy()


class OnnxQuantizer:
    """Write int8 versions of one float32 ONNX file, whose ranges are measured once.

    `source` is the float32 file, and `batches` are inputs of it. Working files are in the folder of `source`.
    """

    def __init__(self, source: Path, batches: Iterable[np.ndarray]) -> None:
        self.source = source
        self.images, self.ranges = source.with_suffix(".images.npy"), source.with_suffix(".ranges.npz")
        np.save(self.images, np.stack(list(batches)))

    def losses(self) -> tuple[dict[str, float], list[str]]:
        """Return {layer: change of the logits if only this layer is int8}, the worst first, and the layers of the stem.

        The change is a root mean square. The stem stays float32.
        """
        answer = self.ask(losses=True)
        losses = answer["losses"]
        return dict(sorted(losses.items(), key=lambda item: -item[1])), answer["stem"]

    def write(self, target: Path, reduce_range: bool, keep_float: Sequence[str]) -> None:
        """Write an int8 file in which the layers `keep_float` are float32; `reduce_range` gives weights 7 bits."""
        self.ask(target=str(target), reduce_range=reduce_range, keep_float=list(keep_float))

    def ask(self, **wanted: Any) -> Any:
        """Let quantize_worker.py carry out a request, and return its answer."""
        request, answer = self.source.with_suffix(".request.json"), self.source.with_suffix(".answer.json")
        content = {"source": self.source, "images": self.images, "ranges": self.ranges, "answer": answer}
        write_json({**{key: str(path) for key, path in content.items()}, **wanted}, request)
        done = subprocess.run([sys.executable, str(WORKER), str(request)], capture_output=True, text=True)
        if done.returncode != 0:
            raise UserError(
                f"--precision int8: ONNX Runtime failed: {(done.stderr.strip() or 'it crashed').splitlines()[-1]}"
            )
        return json.loads(answer.read_text(encoding="utf-8"))


def quantize_within_limits(
    quantizer: OnnxQuantizer, target: Path, options: Options, verify: Callable[[Path], Verification]
) -> tuple[Verification, Quantization]:
    """Write the int8 file `target` with as few float32 layers as the limits of the export allow.

    `verify` compares a file with the checkpoint, and raises `LossError` beyond the limits. Then the layer that loses
    most stays float32, then 2 such layers, 4, 8 and so on, up to half of the layers.
    """
    losses, stem = quantizer.losses()
    worst, count = list(losses), 0
    while True:
        quantizer.write(target, options.reduce_range, worst[:count])
        try:
            verification = verify(target)
            break
        except LossError:
            count = 2 * count or 1
            if count > len(worst) / 2:
                raise
    lose_most = [LayerLoss(layer=layer, loss=losses[layer]) for layer in worst[:NAMED_LAYERS]]
    top1 = verification.runtimes[0].top1
    quantization = Quantization(
        reduce_range=options.reduce_range,
        top1=top1,
        top1_other_range=top1,
        lose_most=lose_most,
        float_layers=worst[:count],
        stem=stem,
    )
    return verification, quantization


def write_lite_calibration(graph: Graph, batches: Iterable[np.ndarray], folder: Path) -> dict[str, dict[str, str]]:
    """Write the inputs of MindSpore Lite's int8 converter into `folder`: model.mindir, images/ and int8.cfg.

    int8.cfg names images/ relative to `folder`, so the folder can be moved to another machine; the converter must be
    started in it. Return the converter's configuration for any working folder, {section: {key: value}}.
    """
    count = 0

    def settings(images: Union[str, Path]) -> dict[str, dict[str, str]]:
        return {
            "common_quant_param": {"quant_type": "FULL_QUANT", "bit_num": "8"},
            "data_preprocess_param": {
                "calibrate_path": f"{graph.input.name}:{images}",
                "calibrate_size": str(count),
                "input_type": "BIN",
            },
            "full_quant_param": {"activation_quant_method": "MAX_MIN", "bias_correction": "true"},
        }

    with making_folder(folder) as partial:
        write_mindir(graph, partial / "model.mindir")
        for batch in batches:
            batch.tofile(make_parent(partial / "images" / f"{count:05}.bin"))
            count += 1
        config = configparser.ConfigParser()
        config.read_dict(settings("images"))
        with open(partial / "int8.cfg", "w", encoding="utf-8") as file:
            config.write(file, space_around_delimiters=False)
    return settings((folder / "images").resolve())
