import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config.load import make_config
from src.data.datasets import load_samples
from src.errors import UserError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def data_config(**settings):
    return make_config({"data": settings}).data


def write_idx(path, array, opener=open):
    with opener(path, "wb") as file:
        file.write(struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def fashion(tmp_path):
    """Four small idx files, two of them gzipped."""
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 10)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", generator.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        labels = np.arange(count, dtype=np.uint8) % 10
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels, gzip.open)
    return tmp_path


def test_train_test_split_of_digits_is_fixed_stratified_and_complete(digit_images):
    images, labels = digit_images
    train, test = (load_samples(data_config(name="digits"), split) for split in ("train", "test"))
    assert len(train) + len(test) == 1797
    share = np.bincount(test.labels) / np.bincount(labels)
    assert (abs(share - 0.2) < 0.005).all()
    pictures = np.concatenate([train.images, test.images])
    assert sorted(image.tobytes() for image in pictures) == sorted(image.tobytes() for image in images)
    assert train.images.dtype == np.uint8
    assert train.images.max() == 255


def test_idx_files_are_read_plain_or_gzipped(fashion):
    samples = load_samples(data_config(name="fashion_mnist", root=str(fashion)), "test")
    assert samples.images.shape == (10, 28, 28, 1)
    assert samples.labels.tolist() == list(range(10))
    raw = (fashion / "t10k-images-idx3-ubyte").read_bytes()
    assert samples.images.tobytes() == raw[16:]


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_debians_fashion_mnist_is_complete():
    for split, each in (("train", 6000), ("test", 1000)):
        samples = load_samples(data_config(name="fashion_mnist"), split)
        assert np.bincount(samples.labels).tolist() == [each] * 10
        assert samples.images.shape == (each * 10, 28, 28, 1)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "train-images-idx3-ubyte",
            lambda content: content[:-1],
            "found 15679 bytes of data, expected 15680 for the shape",
        ),
        ("train-images-idx3-ubyte", lambda content: b"x" + content[1:], "is not an idx file"),
        ("train-images-idx3-ubyte", lambda content: content[:9], "is not an idx file"),
        ("train-images-idx3-ubyte", None, "has neither train-images-idx3-ubyte nor"),
        ("train-labels-idx1-ubyte.gz", lambda content: content[:-9], "is damaged"),
        ("train-labels-idx1-ubyte.gz", lambda content: b"not gzip", "is damaged"),
    ],
)
def test_damaged_idx_file_is_reported(fashion, name, change, said):
    path = fashion / name
    content = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(content))
    with pytest.raises(UserError, match=said):
        load_samples(data_config(name="fashion_mnist", root=str(fashion)), "train")


def test_image_folder_lists_every_image_with_its_class(photos):
    (photos / "train" / "china" / ".hidden").write_text("ignored")
    data = data_config(name="image_folder", root=str(photos))
    train = load_samples(data, "train")
    assert train.classes == ["china", "flower"]
    assert [(Path(file).parent.name, train.classes[label]) for file, label in zip(train.images, train.labels)] == [
        (name, name) for name in ("china", "flower") for _ in range(12)
    ]
    assert len(load_samples(data, "test", train.classes)) == 8


def test_labels_follow_the_class_order_of_the_checkpoint(photos):
    data = data_config(name="image_folder", root=str(photos))
    test = load_samples(data, "test", ["flower", "china"])
    assert {Path(file).parent.name for file, label in zip(test.images, test.labels) if label == 0} == {"flower"}


def damage_photos(photos, defect):
    folder = photos / "train" / "china"
    if defect == "missing root":
        return photos / "nowhere"
    if defect == "no classes":
        return photos / "train" / "china"
    if defect == "empty class":
        (photos / "train" / "zebra").mkdir()
    if defect == "text":
        (folder / "notes.jpg").write_text("this is not an image")
    if defect == "empty file":
        (folder / "empty.jpg").touch()
    if defect == "truncated jpeg":
        content = (folder / "0.jpg").read_bytes()
        (folder / "0.jpg").write_bytes(content[: len(content) // 2])
    if defect == "truncated png":
        Image.open(folder / "0.jpg").save(folder / "truncated.png")
        (folder / "truncated.png").write_bytes((folder / "truncated.png").read_bytes()[:3000])
    if defect == "gif":
        Image.open(folder / "0.jpg").save(folder / "moving.gif")
    return photos


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        ("missing root", "nowhere/train: no such folder"),
        ("no classes", "no such folder"),
        ("empty class", "train/zebra: has no images"),
        ("text", "notes.jpg: is not an image"),
        ("empty file", "empty.jpg: is empty"),
        ("truncated jpeg", "0.jpg: is a damaged image: image file is truncated"),
        ("truncated png", "truncated.png: "),
        ("gif", r"moving.gif: has an unsupported format \(found GIF, expected JPEG, PNG, BMP, WebP, TIFF\)"),
    ],
)
def test_defect_in_an_image_folder_is_reported(photos, defect, said):
    root = damage_photos(photos, defect)
    with pytest.raises(UserError, match=said):
        load_samples(data_config(name="image_folder", root=str(root)), "train")


def test_class_missing_from_training_is_reported(photos):
    data = data_config(name="image_folder", root=str(photos))
    with pytest.raises(UserError, match=r"val/flower: unknown class \(found flower, expected one of china\)"):
        load_samples(data, "test", ["china"])
