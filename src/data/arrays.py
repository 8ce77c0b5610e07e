"""The standard sets of small images, which are read into memory whole."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from src.data.samples import Samples
from src.errors import UserError

ARTICLES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
# Of each CIFAR: the folder of its archive, training and test files, bytes of labels before an image, names of classes.
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


def array_splits(data):
    return ("train", "test")


def is_training(data, split):
    """Tell whether `split` means the training images of a set that has train and test only."""
    if split == "val":
        raise UserError(f"data.name: {data.name} has no val images; it has train and test")
    return split == "train"


def load_digits(data, split, classes):
    """scikit-learn's 1797 handwritten digits, 8x8 gray; every fifth image of each class is for testing."""
    from sklearn.datasets import load_digits as load_bunch  # takes a second, and other datasets do not need it

    bunch = load_bunch()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels == label)[::5]] = True
    chosen = ~is_test if is_training(data, split) else is_test
    return Samples(images[chosen], labels[chosen], [str(name) for name in bunch.target_names])


def load_mnist(data, split, classes):
    """LeCun's 60,000 + 10,000 handwritten digits, 28x28 gray, from the four idx files in `root`, gzipped or not."""
    return load_idx(data, split, [str(digit) for digit in range(10)])


def load_fashion_mnist(data, split, classes):
    """Zalando's 60,000 + 10,000 articles, 28x28 gray, from the four idx files in `root`, gzipped or not."""
    return load_idx(data, split, ARTICLES)


def load_idx(data, split, names):
    """Return the samples of MNIST's four files."""
    prefix = "train" if is_training(data, split) else "t10k"
    images = read_idx(data, f"{prefix}-images-idx3-ubyte", dimensions=3)
    labels = read_idx(data, f"{prefix}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels) or labels.max(initial=0) >= len(names):
        raise UserError(f"{data.root}: {len(images)} {prefix} images and {len(labels)} labels do not belong together")
    return Samples(images[..., None], labels.astype(np.int32), names)


def read_idx(data, name, dimensions):
    """Return the uint8 array of the idx file `name` or `name`.gz in data.root (format: yann.lecun.com/exdb/mnist)."""
    folder = Path(data.root)
    if not folder.is_dir():
        debian = "Debian's package dataset-fashion-mnist or " if data.name == "fashion_mnist" else ""
        raise UserError(f"data.root: {folder}: no such folder; {debian}data.download=true makes it")
    path = next((folder / file for file in (name, f"{name}.gz") if (folder / file).is_file()), None)
    if path is None:
        raise UserError(f"data.root: {folder} has neither {name} nor {name}.gz; data.download=true fetches it")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is damaged: {error}") from None
    header = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < header:
        raise UserError(f"{path}: is not an idx file of bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path}: has {len(content) - header} bytes of data, but its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_cifar(data, split, classes):
    """Krizhevsky's 50,000 + 10,000 images, 32x32 RGB, from the binary files in `root` or in its archive's folder.

    Of CIFAR-100 the 100 fine labels (format: www.cs.toronto.edu/~kriz/cifar.html).
    """
    archive, training, testing, label_bytes, names_file = CIFAR[data.name]
    root = Path(data.root)
    folder = root / archive if (root / archive).is_dir() else root
    names = (folder / names_file).read_text().split() if (folder / names_file).is_file() else None
    if names is None:
        raise UserError(f"data.root: {folder / names_file}: no such file; data.download=true fetches {data.name}")
    parts = [
        read_cifar(folder / name, label_bytes, len(names))
        for name in (training if is_training(data, split) else testing)
    ]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return Samples(images, labels, names)


def read_cifar(path, label_bytes, classes):
    """Return (images uint8 (N, 32, 32, 3), labels int32 (N)) of one binary file."""
    if not path.is_file():
        raise UserError(f"data.root: {path}: no such file")
    content, record = np.fromfile(path, np.uint8), label_bytes + 3 * 32 * 32
    if not len(content) or len(content) % record:
        raise UserError(f"{path}: has {len(content)} bytes, not a multiple of the {record} of an image")
    rows = content.reshape(-1, record)
    labels = rows[:, label_bytes - 1].astype(np.int32)
    if labels.max() >= classes:
        raise UserError(f"{path}: has the label {labels.max()}, but there are {classes} classes")
    pixels = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), labels
