"""Splits, classes and notes of image folders and tables."""

import hashlib
import os
import re
import shutil
from fractions import Fraction
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


def add_images(root, picture, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if not (root / name).exists():
            os.link(picture, root / name)


def hash_of(text):
    """Return the number from 0 to 1 that decides the split."""
    return Fraction(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"), 2**64)


def split_of(root, **settings):
    """Return {class: {names}} of the images in train and in val."""
    data = data_config(name="image_folder", root=str(root), **settings)
    found = []
    train = load_samples(data, "train")
    for samples in (train, load_samples(data, "val", train.classes)):
        names = [Path(file).relative_to(root).as_posix() for file in samples.images]
        found.append({name: {file for file in names if file.startswith(f"{name}/")} for name in os.listdir(root)})
    return found


@pytest.mark.parametrize("seed", range(25))
def test_each_class_of_two_images_is_in_both_splits_and_new_files_move_at_most_one_file(tmp_path, seed):
    generator = np.random.default_rng(seed)
    root, fraction = tmp_path / "root", float(generator.choice([0.001, 0.05, 0.2, 0.5, 0.95, 0.999]))
    paint(tmp_path / "picture.png")
    sizes = {"first": 2, **{f"class {i}": int(generator.integers(1, 8)) for i in range(6)}}
    names = [f"{name}/{text}.png" for name, size in sizes.items() for text in generator.integers(0, 10**9, size)]
    for name in sizes:  # Files that are not images, with many hashes, decide nothing.
        for i in range(10):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / f"{i}.txt").write_text("not an image")
    before = None
    for _ in range(3):
        add_images(root, tmp_path / "picture.png", names)
        train, val = split_of(root, val_fraction=fraction)
        for name in sizes:
            ranked = sorted((file for file in names if file.startswith(f"{name}/")), key=hash_of)
            count = sum(hash_of(file) < Fraction(fraction) for file in ranked)
            count = min(max(count, 1), len(ranked) - 1)  # at least one image in each split, if there are two images
            assert (val[name], train[name]) == (set(ranked[:count]), set(ranked[count:]))
            if before is not None:
                assert len(before[0][name] & val[name]) + len(before[1][name] & train[name]) <= 1
        before = train, val
        names += [f"{name}/{text}.png" for name in sizes for text in generator.integers(0, 10**9, 2)]


def test_a_damaged_image_is_not_the_only_image_of_a_class_in_a_split(tmp_path):
    names = sorted((f"class/{i}.png" for i in range(4)), key=hash_of)
    for name in names[1:3]:
        paint(tmp_path / name)
    for name in (names[0], names[3]):
        (tmp_path / name).write_bytes(b"")
    train, val = split_of(tmp_path, val_fraction=0.001, on_bad_image="skip")
    assert names[1] in val["class"]
    assert names[2] in train["class"]


@pytest.mark.parametrize("seed", range(10))
def test_files_of_a_group_stay_in_one_split(tmp_path, seed):
    generator = np.random.default_rng(seed)
    root = tmp_path / "root"
    paint(tmp_path / "picture.png")
    names = [
        f"class {generator.integers(3)}/{folder}patient{generator.integers(12)}_{i}.png"
        for i, folder in enumerate(generator.choice(["", "below/"], 60))
    ]
    alone = [f"class {i % 3}/{text}.png" for i, text in enumerate(generator.integers(0, 10**9, 30))]
    add_images(root, tmp_path / "picture.png", [*names, *alone])
    train, val = (set().union(*part.values()) for part in split_of(root, val_fraction=0.3, group=r"patient(\d+)_"))
    assert train | val == {*names, *alone}
    groups = [{re.search(r"patient(\d+)_", name)[1] for name in part if "patient" in name} for part in (train, val)]
    assert groups[0].isdisjoint(groups[1])
    assert min(len(part) for part in groups) > 0
    # The hash of the group decides, and the hash of its path decides for a file without a match.
    wrong = [name for name in alone if (hash_of(name) < Fraction(0.3)) != (name in val)]
    wrong += [group for group in groups[0] if hash_of(group) < Fraction(0.3)]
    wrong += [group for group in groups[1] if hash_of(group) >= Fraction(0.3)]
    assert len(wrong) <= 6  # at most the lowest and the highest of each class
    # Without parentheses, the whole match counts: here the number of a patient with the underscore.
    whole = split_of(root, val_fraction=0.3, group=r"patient\d+_")
    parts = [
        {name.split("patient")[1].split("_")[0] for name in set().union(*part.values()) if "patient" in name}
        for part in whole
    ]
    assert parts[0].isdisjoint(parts[1])


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("(", r"data.group: '\(' is not a regular expression: missing \)"),
        ("scene", r"data.group: matches no file in .* \(found 'scene'"),
        ("class", "data.group: matches no file"),  # The class folder is not part of the path.
        ("x*", "data.group: matches no file"),  # An empty match names no group.
        ("png", r"data.group: val is empty, because no class in .* has a second group \(found 'png'\)"),
    ],
)
def test_wrong_group_is_reported(tmp_path, group, said):
    for i in range(6):
        paint(tmp_path / f"class {i % 2}" / f"{i}.png")
    with pytest.raises(UserError, match=said):
        split_of(tmp_path, val_fraction=0.2, group=group)


def test_group_needs_val_fraction_and_val_needs_two_images(photos, tmp_path):
    with pytest.raises(UserError, match="data.group: is used with data.val_fraction only"):
        data_config(name="image_folder", root=str(photos), group="a")
    paint(tmp_path / "single" / "class" / "0.png")
    with pytest.raises(UserError, match="data.val_fraction: val is empty, because no class in .* has two images"):
        split_of(tmp_path / "single", val_fraction=0.9)


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
