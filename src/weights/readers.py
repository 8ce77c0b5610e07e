"""Read weight files of other libraries into NumPy arrays, without executing code from a file."""

import collections
import logging
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import mindspore as ms
import ml_dtypes  # also gives NumPy bfloat16, in which safetensors can then return tensors
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from src.errors import UserError

STORAGE_DTYPES = {  # torch's storage classes that a weight file may contain
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Where training scripts store the weights, beside the state of the optimizer: the moving average in torchvision's
# references and in timm, the weights in most scripts, the weights in torchvision's references. The first key that a
# file has counts.
WEIGHT_KEYS = ("model_ema", "state_dict_ema", "state_dict", "model")
AVERAGE_KEYS = WEIGHT_KEYS[:2]
# Prefixes of all names in the weights of a network inside DataParallel, AveragedModel or torch.compile.
WRAPPERS = ("module.", "_orig_mod.")
WRAPPER_COUNTER = "n_averaged"  # the number of updates that AveragedModel counts, not a weight


class Weights(NamedTuple):
    """The weights in a file, and the key of the training checkpoint under which they were; None: all of the file."""

    tensors: dict[str, np.ndarray]
    key: Optional[str] = None


def read_tensors(path: Union[str, Path]) -> dict[str, np.ndarray]:
    """Return {name: array} of the weights that `read_weights` finds."""
    return read_weights(path).tensors


def read_weights(path: Union[str, Path]) -> Weights:
    """Return the weights in a MindSpore `.ckpt`, a `.safetensors` or a PyTorch `.pth`.

    If the file is a training checkpoint with a moving average of the weights, the average is returned. A missing,
    damaged or other file is a `UserError`.
    """
    path = Path(path)
    readers = {".ckpt": read_ckpt, ".safetensors": read_safetensors, ".pth": read_pth}
    if path.suffix not in readers:
        raise UserError(f"{path}: is not a weight file (expected {', '.join(readers)})")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    weights = readers[path.suffix](path)
    if not weights.tensors:
        raise UserError(f"{path}: contains no tensors")
    return Weights(unwrapped(weights.tensors), weights.key)


def unwrapped(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors without the prefixes in WRAPPERS that all their names have."""
    for prefix in WRAPPERS * 2:  # a network can be in two wrappers, in any order
        names = tensors.keys() - {WRAPPER_COUNTER}
        if names and all(name.startswith(prefix) for name in names):
            tensors = {name[len(prefix) :]: value for name, value in tensors.items() if name in names}
    return tensors


def read_ckpt(path: Path) -> Weights:
    content = load_ckpt(path)
    return Weights({name: value.asnumpy() for name, value in content.items() if isinstance(value, ms.Parameter)})


def load_ckpt(path: Path, crc_check: bool = False) -> dict[str, Any]:
    """Return the Parameters and texts of a MindSpore checkpoint by name; a damaged file is a `UserError`."""
    # MindSpore prints an error on stderr before it raises it.
    logging.disable(logging.CRITICAL)
    try:
        return ms.load_checkpoint(str(path), crc_check=crc_check)
    except (ValueError, TypeError, RuntimeError, OSError, KeyError) as error:
        # MindSpore turns every exception into a ValueError. Ctrl-C, a file without read permission, or too little
        # memory must not be taken for a damaged file.
        reason: Optional[BaseException] = error
        while reason is not None:
            if isinstance(reason, (KeyboardInterrupt, SystemExit, OSError, MemoryError)):
                raise reason from None
            reason = reason.__cause__ or reason.__context__
        raise UserError(f"{path}: is truncated, damaged, or not a MindSpore checkpoint") from None
    finally:
        logging.disable(logging.NOTSET)


def read_safetensors(path: Path) -> Weights:
    try:
        return Weights(load_file(path))
    except (SafetensorError, TypeError) as error:  # NumPy raises a TypeError for a dtype that it does not know
        raise UserError(f"{path}: is damaged, or not a safetensors file: {error}") from None


def read_pth(path: Path) -> Weights:
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
    advice = "save the state_dict() of the model with torch.save"
    if not isinstance(content, dict):
        found = content.origin if isinstance(content, Placeholder) else type(content).__name__
        raise UserError(f"{path}: is not a dict of tensors (found {found}); {advice}")
    key = next((key for key in WEIGHT_KEYS if isinstance(content.get(key), dict)), None)
    tensors = content if key is None else content[key]
    for name, value in tensors.items():
        if isinstance(value, Placeholder):
            raise UserError(
                f"{path}: {name} is not a tensor that can be read safely (it needs {value.origin}); {advice}"
            )
    return Weights({name: value for name, value in tensors.items() if isinstance(value, np.ndarray)}, key)


class Placeholder:
    """Stands for an object whose class or function is not known here; it ignores what a pickle does with it.

    Each class or function has a subclass. `origin` is its name.
    """

    origin = ""

    def __new__(cls, *_: object, **__: object) -> "Placeholder":
        return super().__new__(cls)

    def ignore(self, *_: object) -> None:
        """Do nothing; a pickle calls it to set the state or to add items."""

    __setstate__ = __setitem__ = append = extend = add = ignore


class Unpickler(pickle.Unpickler):
    """Builds dicts and NumPy arrays; any other class or function is not imported, and a `Placeholder` stands for it."""

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
        return type("Placeholder", (Placeholder,), {"origin": f"{module}.{name}"})

    def persistent_load(self, reference: Any) -> Union[np.ndarray, Placeholder]:
        kind, dtype, key, _, count = reference
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown kind of reference (found {kind!r}, expected 'storage')")
        if isinstance(dtype, type) and issubclass(dtype, Placeholder):
            return dtype()
        storage = np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), np.dtype(dtype))
        if len(storage) != count:
            raise pickle.UnpicklingError(
                f"wrong size of storage {key} (found {len(storage)} numbers, expected {count})"
            )
        return storage


def rebuild_tensor(
    storage: Union[np.ndarray, Placeholder], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> Union[np.ndarray, Placeholder]:
    """Return the array that the arguments of torch's `_rebuild_tensor_v2` describe, after a check of its bounds."""
    if isinstance(storage, Placeholder):
        return storage
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if min((offset, *shape, *strides)) < 0 or count > len(storage) or (count and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor lies outside its storage")
    byte_strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides).copy()


def rebuild_parameter(tensor: np.ndarray, *_: object) -> np.ndarray:
    return tensor
