"""Int8 quantisation: measure ranges on calibration images, and round weights and activations to 8 bits."""

import configparser
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Union

import mindspore as ms
import numpy as np

from src.data.loading import Loader
from src.deploy.graph.graph import Graph
from src.deploy.graph.mindir import write_mindir
from src.errors import UserError
from src.files import make_parent, making_folder
from src.models.classifier import Classifier

WORKER = Path(__file__).with_name("quantize_worker.py")


def full_batches(loader: Loader, classifier: Classifier, kind: str) -> Iterator[np.ndarray]:
    """Yield the loader's batches as inputs of a file, whose `kind` is "image" or "tensor".

    A smaller batch is filled up with its last image: the ranges of activations are the same with it twice.
    """
    for images, _ in loader.epoch():
        filled = np.concatenate([images, np.repeat(images[-1:], loader.batch_size - len(images), axis=0)])
        yield filled if kind == "image" else classifier.preprocess(ms.Tensor(filled)).asnumpy()


def quantize_onnx(path: Path, batches: Iterable[np.ndarray]) -> None:
    """Replace the float32 ONNX file at `path` by an int8 file; `batches` are inputs of the file."""
    images, quantized = path.with_suffix(".npy"), path.with_suffix(".int8.onnx")
    np.save(images, np.stack(list(batches)))
    command = [sys.executable, str(WORKER), str(path), str(quantized), str(images)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(
            f"--precision int8: ONNX Runtime failed: {(done.stderr.strip() or 'it crashed').splitlines()[-1]}"
        )
    os.replace(quantized, path)


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
