"""The datasets: where their images are, what is in them, and what is wrong with them. No image is decoded here."""

import gzip
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Union

import numpy as np
from PIL import Image

from src.errors import UserError

SPLITS = ("train", "test")
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF")  # what MindSpore's C++ decoder reads


@dataclass(frozen=True)
class Samples:
    """One split of a dataset.

    `images` are uint8 arrays (N, H, W, C) or the paths of N image files, `labels` int32 (N), indices of `classes`.
    """

    images: Union[np.ndarray, list]
    labels: np.ndarray
    classes: list

    def __len__(self):
        return len(self.labels)

    @property
    def are_files(self):
        return isinstance(self.images, list)

    def take(self, indices):
        """Return the samples at `indices`."""
        images = [self.images[i] for i in indices] if self.are_files else self.images[indices]
        return Samples(images, self.labels[indices], self.classes)


@dataclass(frozen=True)
class Dataset:
    """`load(root, split, classes)` returns `Samples`; `classes` are those of a checkpoint, or None in training."""

    load: Callable
    default_root: Optional[str] = None


def load_samples(data, split, classes=None):
    """Return the `Samples` of `split` ("train" or "test") of the dataset that the config's section `data` names.

    With `classes`, the class names of a checkpoint, labels index into those; a class that they lack is a `UserError`.
    """
    samples = DATASETS[data.name].load(data.root, split, classes)
    # A network may have more outputs than the data has classes (model.classes); those have names at the end.
    if classes is not None and list(classes)[: len(samples.classes)] != samples.classes:
        raise UserError(f"data.name: {data.name} has other classes than the checkpoint: {', '.join(samples.classes)}")
    return samples


def load_digits(root, split, classes):
    """scikit-learn's 1797 handwritten digits, 8x8 gray; every fifth image of each class is for testing."""
    from sklearn.datasets import load_digits as load_bunch  # takes a second, and other datasets do not need it

    bunch = load_bunch()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels == label)[::5]] = True
    chosen = is_test if split == "test" else ~is_test
    return Samples(images[chosen], labels[chosen], [str(name) for name in bunch.target_names])


def load_fashion_mnist(root, split, classes):
    """Zalando's 60,000 + 10,000 articles, 28x28 gray, from the four idx files in `root`, gzipped or not."""
    prefix = "t10k" if split == "test" else "train"
    images = read_idx(Path(root), f"{prefix}-images-idx3-ubyte", dimensions=3)
    labels = read_idx(Path(root), f"{prefix}-labels-idx1-ubyte", dimensions=1)
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    if len(images) != len(labels) or labels.max(initial=0) >= len(names):
        raise UserError(f"{root}: {len(images)} {prefix} images and {len(labels)} labels do not belong together")
    return Samples(images[..., None], labels.astype(np.int32), names)


def read_idx(folder, name, dimensions):
    """Return the uint8 array of the idx file `name` or `name`.gz in `folder` (format: yann.lecun.com/exdb/mnist)."""
    if not folder.is_dir():
        raise UserError(f"data.root: {folder}: no such folder; Debian's package dataset-fashion-mnist makes it")
    path = next((folder / file for file in (name, f"{name}.gz") if (folder / file).is_file()), None)
    if path is None:
        raise UserError(f"data.root: {folder} has neither {name} nor {name}.gz")
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


def load_image_folder(root, split, classes):
    """Photos in `root/train/<class>/*` and `root/val/<class>/*`; hidden files are ignored."""
    folder = Path(root) / ("val" if split == "test" else "train")
    if not folder.is_dir():
        raise UserError(f"data.root: {folder}: no such folder; it should hold a folder of images for each class")
    found = {child.name: child for child in sorted(folder.iterdir()) if child.is_dir() and child.name[0] != "."}
    if not found:
        raise UserError(f"data.root: {folder} has no class folders; each class is a folder of images")
    classes = list(found) if classes is None else list(classes)
    files, labels = [], []
    for name, class_folder in found.items():
        if name not in classes:
            raise UserError(f"{class_folder}: the class {name} is not among those trained: {', '.join(classes)}")
        images = sorted(file for file in class_folder.rglob("*") if file.is_file() and file.name[0] != ".")
        if not images:
            raise UserError(f"{class_folder}: has no images")
        files += [str(file) for file in images]
        labels += [classes.index(name)] * len(images)
    check_images(files)
    return Samples(files, np.array(labels, np.int32), classes)


def check_images(files):
    """Raise a `UserError` that names the first file that is no image, or is cut short."""
    with ThreadPoolExecutor() as pool:
        for problem in pool.map(image_problem, files):
            if problem:
                raise UserError(problem)


def image_problem(file, decode=False):
    """Return what is wrong with an image file, or None; unless told to, it decodes only one without an end mark."""
    try:
        with Image.open(file) as image:
            if image.format not in IMAGE_FORMATS:
                return f"{file}: is a {image.format} image; supported are {', '.join(IMAGE_FORMATS)}"
            if decode or not has_end_mark(file, image.format):
                image.load()
    except OSError as error:
        detail = "is empty" if Path(file).stat().st_size == 0 else "is no image" if "identify" in str(error) else error
        return f"{file}: {detail}"
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{file}: is a damaged image: {error}"
    return None


def has_end_mark(file, image_format):
    """Tell whether a JPEG or PNG file ends as its format demands, which a file cut short does not."""
    end_marks = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
    if image_format not in end_marks:
        return False
    with open(file, "rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - 64))
        return end_marks[image_format] in stream.read()


DATASETS = {
    "digits": Dataset(load_digits),
    "fashion_mnist": Dataset(load_fashion_mnist, default_root="/usr/share/datasets/fashion-mnist"),
    "image_folder": Dataset(load_image_folder),
}
