"""Reading weight files of other libraries into NumPy; nothing that a file says is executed."""

import collections
import logging
import math
import pickle
import zipfile
from pathlib import Path

import mindspore as ms
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from src.errors import UserError

STORAGE_DTYPES = {  # torch's storage classes that a file of weights may name
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
}


def read_tensors(path):
    """Return {name: array} of a MindSpore `.ckpt`, a `.safetensors` or a PyTorch `.pth`; otherwise `UserError`."""
    path = Path(path)
    readers = {".ckpt": read_ckpt, ".safetensors": read_safetensors, ".pth": read_pth}
    if path.suffix not in readers:
        raise UserError(f"{path}: weights are read from {', '.join(readers)} files")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    tensors = readers[path.suffix](path)
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    return tensors


def read_ckpt(path):
    # MindSpore reports a bad file on stderr before it raises.
    logging.disable(logging.CRITICAL)
    try:
        content = ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError, KeyError):
        raise UserError(f"{path}: is cut short, damaged, or not a MindSpore checkpoint") from None
    finally:
        logging.disable(logging.NOTSET)
    return {name: value.asnumpy() for name, value in content.items() if isinstance(value, ms.Parameter)}


def read_safetensors(path):
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: is not a sound safetensors file: {error}") from None


def read_pth(path):
    """Read the zip format that `torch.save` writes since PyTorch 1.6."""
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            content = Unpickler(archive, entry).load()
    except zipfile.BadZipFile:
        raise UserError(f"{path}: is damaged, or older than PyTorch 1.6; PyTorch can save it anew") from None
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: is not a file of PyTorch weights that can be read safely: {error}") from None
    # Training scripts store the weights beside the optimizer's state.
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no dict of tensors")
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


class Unpickler(pickle.Unpickler):
    """Builds dicts and NumPy arrays; any other class or function that the pickle names is refused, not imported."""

    def __init__(self, archive, entry):
        super().__init__(archive.open(entry))
        self.archive = archive
        self.folder = entry[: -len("data.pkl")]

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return rebuild_parameter
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights do not need")

    def persistent_load(self, reference):
        kind, dtype, key, _, count = reference
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to a {kind!r}")
        storage = np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), np.dtype(dtype))
        if len(storage) != count:
            raise pickle.UnpicklingError(f"storage {key} has {len(storage)} numbers instead of {count}")
        return storage


def rebuild_tensor(storage, offset, shape, strides, *_):
    """Return the array that torch's `_rebuild_tensor_v2` describes; its bounds are checked before memory is touched."""
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if min((offset, *shape, *strides)) < 0 or count > len(storage) or (count and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor lies outside its storage")
    byte_strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides).copy()


def rebuild_parameter(tensor, *_):
    return tensor
