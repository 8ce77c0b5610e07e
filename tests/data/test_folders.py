"""Splits, classes and notes of image folders and tables."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config.load import make_config
from src.data.datasets import load_samples, splits_of
from src.errors import UserError


def data_config(**settings):
    return make_config({"data": settings}).data


def paint(path, colour=(200, 100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour).save(path)


def names_of(samples):
    return {(Path(file).parent.name, Path(file).name) for file in samples.images}


def test_three_splits_have_different_images(photos):
    data = data_config(name="image_folder", root=str(photos))
    assert splits_of(data) == ("train", "val")
    assert len(load_samples(data, "test")) == 8  # A data set with one evaluation split has it under both names.
    paint(photos / "test" / "china" / "only.png")
    assert splits_of(data) == ("train", "val", "test")
    classes = ["china", "flower"]
    assert [len(load_samples(data, split, classes)) for split in ("train", "val", "test", "eval")] == [24, 8, 1, 8]
    shutil.rmtree(photos / "val")
    assert len(load_samples(data, "eval", classes)) == 1
    with pytest.raises(UserError, match="val: no such folder"):
        load_samples(data, "val", classes)


def test_new_images_do_not_change_the_split_of_old_images(tmp_path):
    for i in range(300):
        paint(tmp_path / f"class {i % 3}" / "below" / f"{i}.bmp")
    data = data_config(name="image_folder", root=str(tmp_path), val_fraction=0.2)
    before = {split: names_of(load_samples(data, split)) for split in ("train", "val")}
    assert before["train"].isdisjoint(before["val"])
    assert len(before["train"]) + len(before["val"]) == 300
    # The count of a class is binomial with n = 100 and p = 0.2; the limits are four standard deviations.
    assert all(4 <= count <= 36 for count in np.bincount(load_samples(data, "val").labels))
    for i in range(300, 400):
        paint(tmp_path / f"class {i % 3}" / "below" / f"{i}.bmp")
    for split, names in before.items():
        assert names < names_of(load_samples(data, split))
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert before["val"] < names_of(load_samples(data.model_copy(update={"root": str(moved)}), "val"))


def test_val_fraction_is_for_a_folder_without_splits(photos):
    with pytest.raises(UserError, match="set data.val_fraction if the splits are in one folder"):
        load_samples(data_config(name="image_folder", root=str(photos / "train")), "train")
    with pytest.raises(UserError, match="data.val_fraction: is supported for a folder without splits only"):
        load_samples(data_config(name="image_folder", root=str(photos), val_fraction=0.2), "train")


def test_files_that_are_not_images_are_ignored_and_counted(photos):
    for name in ("notes.txt", "Thumbs.db", ".DS_Store", "._0.jpg"):
        (photos / "train" / "china" / name).write_bytes(b"\0\5\x16\7")
    paint(photos / "train" / ".trash" / "old.png")
    samples = load_samples(data_config(name="image_folder", root=str(photos)), "train")
    assert len(samples) == 24
    assert samples.notes == (f"{photos}/train: ignored files, hidden or not images: 4",)


def test_class_missing_from_validation_is_reported_as_a_note(photos):
    shutil.rmtree(photos / "val" / "flower")
    data = data_config(name="image_folder", root=str(photos))
    assert load_samples(data, "eval", ["china", "flower"]).notes == (f"{photos}/val: classes without images: flower",)


def test_bad_images_are_reported_or_remembered(photos):
    bad = photos / "train" / "china" / "3.jpg"
    bad.write_bytes(b"")
    data = data_config(name="image_folder", root=str(photos))
    with pytest.raises(UserError, match=f"{bad}: is empty"):
        load_samples(data, "train")
    samples = load_samples(data.model_copy(update={"on_bad_image": "skip"}), "train")
    assert (len(samples), list(samples.bad.values())) == (24, [f"{bad}: is empty"])
    (number,) = samples.bad
    assert samples.images[number] == str(bad)
    assert list(samples.take([0, number]).bad) == [1]


def test_imagenet_classes_have_readable_names_in_the_order_of_the_synsets(tmp_path):
    for split in ("train", "val"):
        for synset in ("n03126707", "n01440764", "n02012849"):
            paint(tmp_path / split / synset / "a.png")
    data = data_config(name="imagenet", root=str(tmp_path))
    samples = load_samples(data, "train")
    # Two classes are called crane; their synsets distinguish them.
    assert samples.classes == ["n01440764 tench", "n02012849 crane", "n03126707 crane"]
    assert load_samples(data, "eval", samples.classes[::-1]).labels.tolist() == [2, 1, 0]
    paint(tmp_path / "train" / "tench" / "a.png")
    with pytest.raises(UserError, match="found tench, expected a name such as n01440764"):
        load_samples(data, "train")


@pytest.fixture
def table(tmp_path):
    for i in range(4):
        paint(tmp_path / "images" / f"{i}.png")
    (tmp_path / "train.csv").write_text(
        "\ufefflabel,path\n10,images/0.png\n9,images/1.png\n10,images/2.png\n", encoding="utf-8"
    )
    (tmp_path / "val.csv").write_text('path,label\n"images/3.png",9\n')
    return tmp_path


def test_a_table_lists_images_and_labels(table):
    data = data_config(name="csv", root=str(table))
    train = load_samples(data, "train")
    assert (train.classes, train.labels.tolist()) == (["9", "10"], [1, 0, 1])
    assert train.images == [str(table / "images" / f"{i}.png") for i in range(3)]
    val = load_samples(data, "eval", train.classes)
    assert (val.labels.tolist(), val.notes) == ([0], (f"{table}/val.csv: classes without images: 10",))
    assert splits_of(data) == ("train", "val")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,label\na,b\n", r"train.csv: wrong columns \(found file, label, expected path and label\)"),
        ("", r"train.csv: wrong columns \(found none"),
        ("path,label\n", "train.csv: has no images"),
        ("path,label\nimages/0.png,cat\nimages/1.png\n", "train.csv: line 3 has no label"),
        ("path,label\nimages/0.png,cat\nimages/9.png,dog\n", "images/9.png: No such file or directory"),
        (b"path,label\n\xff,cat\n", "train.csv: is not a table in UTF-8"),
    ],
)
def test_wrong_table_is_reported(table, content, said):
    (table / "train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        load_samples(data_config(name="csv", root=str(table)), "train")


def test_class_missing_from_training_is_reported_with_its_line(table):
    with pytest.raises(UserError, match=r"val.csv: line 2: unknown class \(found 9, expected one of cat\)"):
        load_samples(data_config(name="csv", root=str(table)), "eval", ["cat"])
