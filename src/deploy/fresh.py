"""Exported files of networks with random weights: latency does not depend on the weights. A cache folder keeps them."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import mindspore as ms
import numpy as np
from mindspore import nn

from src.deploy.description import EXTENSIONS
from src.deploy.export import deployment_graph, export_with_mindspore, write
from src.deploy.options import Options
from src.deploy.quantize import OnnxQuantizer
from src.deploy.runtimes.lite import need_lite
from src.deploy.runtimes.process import RuntimeProcess
from src.deploy.runtimes.timing import process_for
from src.files import cache_folder, make_parent, replacing
from src.versions import versions

SOURCES = Path(__file__).resolve().parents[1]  # a change of the networks or of the export makes new files
CALIBRATION = 4  # random inputs that give the ranges for int8


class Target(NamedTuple):
    """Where a network shall be timed: the format of its file, and the precision."""

    format: str
    precision: str
    lite_python: Optional[str] = None

    def process(self) -> RuntimeProcess:
        """Start the process that runs the files."""
        return process_for(EXTENSIONS[self.format], self.lite_python)


def target_of(runtime: str, precision: str, lite_python: Optional[str] = None) -> Target:
    """Return the `Target` of a runtime in FILES; a runtime that is not installed is a `UserError`."""
    return Target(FILES[runtime], precision, need_lite(lite_python) if runtime == "lite" else None)


# The runtimes that time exported files, and the format of their files.
FILES = {"onnx": "onnx", "lite": "ms", "ncnn": "ncnn"}


def fresh_file(name: str, make: Callable[[], nn.Cell], example: np.ndarray, target: Target) -> Path:
    """Return the path of a file with the network that `make` returns, and write it if the cache does not have it.

    `name` identifies the network. `example` is its input: uint8 images (N, H, W, C) or float32 (N, C, H, W).
    """
    facts = [name, example.shape, target.format, target.precision, versions(), code_checksum()]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    extension = EXTENSIONS[target.format]
    path = cache_folder() / "fresh" / f"{name.replace(' ', '_').replace(',', '')}-{key}{extension}"
    if path.exists():
        return path
    kind = "image" if example.dtype == np.uint8 else "tensor"
    precision = target.precision
    options = Options(target.format, kind, logits=True, precision=precision, lite_python=target.lite_python)
    with replacing(make_parent(path), extension) as partial, tempfile.TemporaryDirectory() as folder:
        plain, written = Path(folder) / "plain.mindir", Path(folder) / f"float{extension}"
        export_with_mindspore(make().set_train(False), ms.Tensor(example), plain)
        write(deployment_graph(plain, options), plain, written, path, options, (), {})
        if precision == "int8":
            generator = np.random.default_rng(0)
            inputs = (generator.random((CALIBRATION, *example.shape)) * 255).astype(example.dtype)
            OnnxQuantizer(written, inputs).write(written, reduce_range=False, keep_float=())
        if target.format == "ncnn":
            # The weights first: where the cache has the .param file, it also has the weights.
            with replacing(path.with_suffix(".bin")) as weights:
                weights.write_bytes(written.with_suffix(".bin").read_bytes())
        partial.write_bytes(written.read_bytes())
    return path


def code_checksum() -> str:
    """Return a checksum of the code that makes the files."""
    code = hashlib.sha256()
    for folder in ("models", "deploy"):
        for file in sorted((SOURCES / folder).rglob("*.py")):
            code.update(file.read_bytes())
    return code.hexdigest()
