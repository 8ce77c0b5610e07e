"""Read weight files of other libraries into NumPy arrays, without executing code from a file."""

import collections
import logging
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, Union

import mindspore as ms
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from src.errors import UserError

STORAGE_DTYPES = {  # torch's storage classes that a weight file may contain
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
}


def read_tensors(path: Union[str, Path]) -> dict[str, np.ndarray]:
    """Return {name: array} of a MindSpore `.ckpt`, a `.safetensors` or a PyTorch `.pth`.

    A missing, damaged or other file is a `UserError`.
    """
    path = Path(path)
    readers = {".ckpt": read_ckpt, ".safetensors": read_safetensors, ".pth": read_pth}
    if path.suffix not in readers:
        raise UserError(f"{path}: is not a weight file (expected {', '.join(readers)})")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    tensors = readers[path.suffix](path)
    if not tensors:
        raise UserError(f"{path}: contains no tensors")
    return tensors


def read_ckpt(path: Path) -> dict[str, np.ndarray]:
    # MindSpore prints an error on stderr before it raises it.
    logging.disable(logging.CRITICAL)
    try:
        content = ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError, KeyError):
        raise UserError(f"{path}: is truncated, damaged, or not a MindSpore checkpoint") from None
    finally:
        logging.disable(logging.NOTSET)
    return {name: value.asnumpy() for name, value in content.items() if isinstance(value, ms.Parameter)}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: is damaged, or not a safetensors file: {error}") from None


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file in the zip format, which `torch.save` writes since PyTorch 1.6."""
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            content = Unpickler(archive, entry).load()
    except zipfile.BadZipFile:
        raise UserError(
            f"{path}: is damaged, or older than PyTorch 1.6; load and save it with a newer PyTorch"
        ) from None
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: is not a PyTorch weight file that can be read safely: {error}") from None
    # Training scripts store the weights under such a key, beside the state of the optimizer.
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise UserError(f"{path}: contains no dict of tensors")
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


class Unpickler(pickle.Unpickler):
    """Builds dicts and NumPy arrays; any other class or function that the pickle names is an error and not imported."""

    def __init__(self, archive: zipfile.ZipFile, entry: str) -> None:
        super().__init__(archive.open(entry))
        self.archive = archive
        self.folder = entry[: -len("data.pkl")]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return rebuild_parameter
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"it needs {module}.{name}, which is not allowed in a weight file")

    def persistent_load(self, reference: Any) -> np.ndarray:
        kind, dtype, key, _, count = reference
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown kind of reference (found {kind!r}, expected 'storage')")
        storage = np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), np.dtype(dtype))
        if len(storage) != count:
            raise pickle.UnpicklingError(
                f"wrong size of storage {key} (found {len(storage)} numbers, expected {count})"
            )
        return storage


def rebuild_tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> np.ndarray:
    """Return the array that the arguments of torch's `_rebuild_tensor_v2` describe, after a check of its bounds."""
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if min((offset, *shape, *strides)) < 0 or count > len(storage) or (count and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor lies outside its storage")
    byte_strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides).copy()


def rebuild_parameter(tensor: np.ndarray, *_: object) -> np.ndarray:
    return tensor
