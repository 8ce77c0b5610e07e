"""Standard data sets of small images, which are read into memory as a whole: digits, MNIST, Fashion-MNIST, CIFAR."""

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from src.config.schema import DataConfig
from src.data.samples import Samples, root_of
from src.errors import UserError

ARTICLES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
# For each CIFAR: the folder in its archive, training files, test files, label bytes before each image, and the file of
# class names.
CIFAR = {
    "cifar10": (
        "cifar-10-batches-bin",
        [f"data_batch_{i}.bin" for i in range(1, 6)],
        ["test_batch.bin"],
        1,
        "batches.meta.txt",
    ),
    "cifar100": ("cifar-100-binary", ["train.bin"], ["test.bin"], 2, "fine_label_names.txt"),
}


def array_splits(data: DataConfig) -> tuple[str, ...]:
    """Return the splits that each of these data sets has."""
    return ("train", "test")


def is_training(data: DataConfig, split: str) -> bool:
    """Return whether `split` means the training images of a data set that has the splits train and test only."""
    if split == "val":
        raise UserError(f"data.name: {data.name} has no such split (found val, expected train or test)")
    return split == "train"


def load_digits(data: DataConfig, split: str, classes: Optional[Sequence[str]]) -> Samples:
    """Return scikit-learn's 1797 handwritten digits, 8x8 gray; every fifth image of each class is a test image."""
    from sklearn.datasets import load_digits as load_bunch  # The import takes a second; other data sets do not need it.

    bunch = load_bunch()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels == label)[::5]] = True
    chosen = ~is_test if is_training(data, split) else is_test
    return Samples(images[chosen], labels[chosen], [str(name) for name in bunch.target_names])


def load_mnist(data: DataConfig, split: str, classes: Optional[Sequence[str]]) -> Samples:
    """Return LeCun's 60,000 + 10,000 handwritten digits, 28x28 gray.

    They are read from the four idx files in `root`, gzipped or not.
    """
    return load_idx(data, split, [str(digit) for digit in range(10)])


def load_fashion_mnist(data: DataConfig, split: str, classes: Optional[Sequence[str]]) -> Samples:
    """Return Zalando's 60,000 + 10,000 images of articles, 28x28 gray.

    They are read from the four idx files in `root`, gzipped or not.
    """
    return load_idx(data, split, ARTICLES)


def load_idx(data: DataConfig, split: str, names: list[str]) -> Samples:
    """Return the samples of one split in MNIST's four files; `names` are the class names."""
    prefix = "train" if is_training(data, split) else "t10k"
    images = read_idx(data, f"{prefix}-images-idx3-ubyte", dimensions=3)
    labels = read_idx(data, f"{prefix}-labels-idx1-ubyte", dimensions=1)
    largest = labels.max(initial=0)
    if len(images) != len(labels) or largest >= len(names):
        raise UserError(
            f"data.root: {data.root}: the {prefix} images do not match their labels (found {len(images)} images and "
            f"{len(labels)} labels up to {largest}, expected equal numbers and labels up to {len(names) - 1})"
        )
    return Samples(images[..., None], labels.astype(np.int32), names)


def read_idx(data: DataConfig, name: str, dimensions: int) -> np.ndarray:
    """Return the uint8 array of the idx file `name` or `name`.gz in data.root (format: yann.lecun.com/exdb/mnist)."""
    folder = root_of(data)
    if not folder.is_dir():
        debian = "install Debian's package dataset-fashion-mnist or " if data.name == "fashion_mnist" else ""
        raise UserError(f"data.root: {folder}: no such folder; {debian}set data.download=true")
    path = next((folder / file for file in (name, f"{name}.gz") if (folder / file).is_file()), None)
    if path is None:
        raise UserError(f"data.root: {folder} has neither {name} nor {name}.gz; set data.download=true to download it")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is damaged: {error}") from None
    header = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < header:
        raise UserError(f"{path}: is not an idx file of unsigned bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = np.prod(shape, dtype=np.int64)
    if len(content) - header != expected:
        raise UserError(
            f"{path}: has the wrong size (found {len(content) - header} bytes of data, expected {expected} for the "
            f"shape {shape} in its header)"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_cifar(data: DataConfig, split: str, classes: Optional[Sequence[str]]) -> Samples:
    """Return Krizhevsky's 50,000 + 10,000 images, 32x32 RGB.

    They are read from the binary files in `root`, or in the folder that the archive unpacks to inside `root`.
    CIFAR-100 gets its 100 fine labels (format: www.cs.toronto.edu/~kriz/cifar.html).
    """
    archive, training, testing, label_bytes, names_file = CIFAR[data.name]
    root = root_of(data)
    folder = root / archive if (root / archive).is_dir() else root
    names = (folder / names_file).read_text().split() if (folder / names_file).is_file() else None
    if names is None:
        raise UserError(f"data.root: {folder / names_file}: no such file; set data.download=true to download it")
    parts = [
        read_cifar(folder / name, label_bytes, len(names))
        for name in (training if is_training(data, split) else testing)
    ]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return Samples(images, labels, names)


def read_cifar(path: Path, label_bytes: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 (N, 32, 32, 3), labels int32 (N)) of one binary file."""
    if not path.is_file():
        raise UserError(f"data.root: {path}: no such file; unpack the archive of the data set again")
    content, record = np.fromfile(path, np.uint8), label_bytes + 3 * 32 * 32
    if not len(content) or len(content) % record:
        raise UserError(
            f"{path}: has the wrong size (found {len(content)} bytes, expected a multiple of {record}, the bytes of an "
            "image with its labels)"
        )
    rows = content.reshape(-1, record)
    labels = rows[:, label_bytes - 1].astype(np.int32)
    if labels.max() >= classes:
        raise UserError(f"{path}: has an unknown label (found {labels.max()}, expected at most {classes - 1})")
    pixels = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), labels
