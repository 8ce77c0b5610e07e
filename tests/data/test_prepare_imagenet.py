"""Unpack archives that have the form of ImageNet's official archives, with three classes."""

import io
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from src.config.load import make_config
from src.data.datasets import load_samples
from src.errors import UserError
from tools import prepare_imagenet
from tools.prepare_imagenet import DEVKIT, TRAIN, VAL

# The ids are not in the order of the synsets' names, as in the real table. The id 4 is a synset above the classes.
SYNSETS = {1: "n02119789", 2: "n02100735", 3: "n01440764", 4: "n00001740"}
TRAIN_IMAGES = {"n02119789": 3, "n02100735": 2, "n01440764": 4, "n00001740": 0}
LABELS = [3, 1, 2, 3, 3]


def jpeg(number):
    written = io.BytesIO()
    Image.new("RGB", (16 + number % 5, 16), (number * 7 % 256, 50, 90)).save(written, "JPEG")
    return written.getvalue()


def add(archive, name, content, **attributes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    archive.addfile(member, io.BytesIO(content))


def meta_mat():
    """The structure of the real meta.mat: a column of structs `synsets`."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    synsets = np.empty((len(SYNSETS), 1), [(name, object) for name in (*fields, "num_train_images")])
    for row, (number, synset) in zip(synsets, SYNSETS.items()):
        children = np.array([1, 2, 3], np.uint16) if number == 4 else np.array([], np.uint8)
        row[0] = (np.uint16(number), synset, "a, b", "a thing", len(children), children, 0, TRAIN_IMAGES[synset])
    written = io.BytesIO()
    savemat(written, {"synsets": synsets})
    return written.getvalue()


def write_archives(folder, extra_train=None, extra_inner=None, extra_val=None, labels=LABELS, meta=None):
    """Write the three archives; return {path below the output folder: content} of their images.

    Each `extra` is a function that adds members to an archive: to the training archive, to each archive of a class, or
    to the validation archive.
    """
    folder.mkdir(exist_ok=True)
    expected, number = {}, 0
    with tarfile.open(folder / TRAIN, "w") as train:
        for synset, count in TRAIN_IMAGES.items():
            if not count:
                continue
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as images:
                for i in range(count):
                    number += 1
                    name = f"{synset}_{i * 37}.JPEG"
                    expected[f"train/{synset}/{name}"] = jpeg(number)
                    add(images, name, jpeg(number))
                if extra_inner:
                    extra_inner(images)
            add(train, f"{synset}.tar", inner.getvalue())
        if extra_train:
            extra_train(train)
    with tarfile.open(folder / VAL, "w") as val:
        for i, label in enumerate(LABELS, 1):
            number += 1
            name = f"ILSVRC2012_val_{i:08d}.JPEG"
            expected[f"val/{SYNSETS[label]}/{name}"] = jpeg(number)
            add(val, name, jpeg(number))
        if extra_val:
            extra_val(val)
    with tarfile.open(folder / DEVKIT, "w:gz") as devkit:
        top = "ILSVRC2012_devkit_t12"
        add(devkit, f"{top}/readme.txt", b"read me")
        add(devkit, f"{top}/data/meta.mat", meta_mat() if meta is None else meta)
        text = "".join(f"{label}\n" for label in labels)
        add(devkit, f"{top}/data/ILSVRC2012_validation_ground_truth.txt", text.encode())
    return expected


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    """Run the tool on tmp_path/archives and tmp_path/out."""
    prepare_imagenet.class_folder.cache_clear()
    monkeypatch.setattr("sys.argv", ["prepare_imagenet.py", str(tmp_path / "archives"), str(tmp_path / "out")])
    return prepare_imagenet.main


def test_archives_become_a_data_set(prepare, tmp_path, capsys):
    expected = write_archives(tmp_path / "archives")
    prepare()
    assert files_in(tmp_path / "out") == expected
    assert "train: 9 images (9 written, 0 were there)" in capsys.readouterr().out
    data = make_config({"data": {"name": "imagenet", "root": str(tmp_path / "out")}}).data
    train = load_samples(data, "train")
    assert [name[:9] for name in train.classes] == sorted(SYNSETS[i] for i in (1, 2, 3))
    val = load_samples(data, "val", train.classes)
    labels = {os.path.basename(path): val.classes[label][:9] for path, label in zip(val.images, val.labels)}
    assert labels == {f"ILSVRC2012_val_{i:08d}.JPEG": SYNSETS[label] for i, label in enumerate(LABELS, 1)}


def test_an_interrupted_command_goes_on(prepare, tmp_path, capsys, monkeypatch):
    expected = write_archives(tmp_path / "archives")
    replaced = []

    def replace(source, target):
        if len(replaced) == 5:
            raise KeyboardInterrupt
        replaced.append(target)
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_imagenet.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            prepare()
    out = tmp_path / "out"
    there = files_in(out)
    assert len(there) == 5
    assert there.items() < expected.items()
    kept, *cut = sorted(there)
    (out / cut[0]).write_bytes(expected[cut[0]][:100])  # What a power failure may leave.
    (out / cut[1]).write_bytes(b"")
    (out / cut[2]).with_name(f".{os.path.basename(cut[2])}.partial").write_bytes(b"what a killed process leaves")
    (out / cut[2]).unlink()
    before = (out / kept).stat()
    prepare()
    assert files_in(out) == expected
    assert (out / kept).stat() == before
    assert "train: 9 images (7 written, 2 were there)" in capsys.readouterr().out


def test_a_file_that_differs_is_not_overwritten(prepare, tmp_path):
    first = min(write_archives(tmp_path / "archives"))
    file = tmp_path / "out" / first
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    with pytest.raises(UserError, match=f"{file}: differs from the image in .*; move it away"):
        prepare()
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("../escaped.JPEG", {}),
        ("FOLDER/escaped.JPEG", {}),  # an absolute path, to a folder that exists
        ("n02119789_1.JPEG/../../../escaped", {}),
        ("n02119789_1.JPEG\n", {}),
        ("n02119789_1.JPEG", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("n02119789_1.JPEG", {"type": tarfile.LNKTYPE, "linkname": "../escaped"}),
        ("n02119789_1.JPEG", {"type": tarfile.FIFOTYPE}),
        ("n02119789.tar", {"type": tarfile.DIRTYPE}),
    ],
)
@pytest.mark.parametrize("place", ["extra_train", "extra_inner", "extra_val"])
def test_unsafe_members_are_refused(prepare, tmp_path, name, attributes, place):
    name = name.replace("FOLDER", str(tmp_path))
    name = name if place != "extra_val" else name.replace("n02119789_1", "ILSVRC2012_val_00000001")
    name = name if place != "extra_train" else name.replace("_1.JPEG", ".tar")
    write_archives(tmp_path / "archives", **{place: lambda archive: add(archive, name, b"", **attributes)})
    with pytest.raises(UserError, match="unexpected member"):
        prepare()
    assert not list(tmp_path.rglob("*escaped*"))
    assert {path.name for path in tmp_path.iterdir()} == {"archives", "out"}


def test_links_out_of_the_folder_are_refused(prepare, tmp_path):
    write_archives(tmp_path / "archives")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "val").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"leads out of .*; remove the link"):
        prepare()
    assert not any(path.is_file() for path in (tmp_path / "elsewhere").rglob("*"))


def test_the_disk_must_have_room(prepare, tmp_path, monkeypatch):
    write_archives(tmp_path / "archives")
    size = sum((tmp_path / "archives" / name).stat().st_size for name in (TRAIN, VAL))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(prepare_imagenet.shutil, "disk_usage", lambda path: usage._replace(free=size))
    with pytest.raises(UserError, match=r"out: the disk is too full \(found 0.0 GB, expected 0.0 GB\)"):
        prepare()
    assert not (tmp_path / "out").exists()


def cut(name, keep):
    def change(archives):
        content = (archives / name).read_bytes()
        (archives / name).write_bytes(content[: keep(len(content))])

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda archives: (archives / DEVKIT).unlink(),
            "has no ILSVRC2012_devkit_t12.tar.gz; ",
        ),
        (
            cut(DEVKIT, lambda size: size // 2),
            "ILSVRC2012_devkit_t12.tar.gz: is damaged or incomplete",
        ),
        (cut(DEVKIT, lambda size: 0), "ILSVRC2012_devkit_t12.tar.gz: is damaged or incomplete"),
        (cut(TRAIN, lambda size: 512), "img_train.tar: .*is damaged or incomplete"),
        (cut(TRAIN, lambda size: 512 + 1200), "img_train.tar: .*is damaged or incomplete"),
        (
            cut(TRAIN, lambda size: 512 + 10240),
            r"img_train.tar: is .*incomplete \(found 1 classes, exp",
        ),
        (cut(VAL, lambda size: 1536), r"img_val.tar: is incomplete \(found 1 images, expected 5\)"),
        (cut(VAL, lambda size: 700), "img_val.tar: is damaged or incomplete"),
        (
            lambda archives: write_archives(archives, labels=[3, 1]),
            r"00003.JPEG: has no label \(found 3, expected 1 to",
        ),
        (lambda archives: write_archives(archives, labels=[9] * 5), r"unknown class \(found 9, expected a number in"),
        (lambda archives: write_archives(archives, labels=["x"]), r"unknown class \(found x"),
        (lambda archives: write_archives(archives, labels=[3] * 6), r"incomplete \(found 5 images, expected 6\)"),
        (lambda archives: write_archives(archives, meta=b"no matrix"), "meta.mat cannot be read"),
        (
            lambda archives: write_archives(archives, extra_train=lambda train: add(train, "n99999999.tar", b"")),
            "n99999999.tar: is not a class of",
        ),
        (
            lambda archives: write_archives(archives, extra_inner=lambda images: add(images, "n02119789_9.JPEG", b"x")),
            r"n02119789.tar: is incomplete \(found 4 images, expected 3\)",
        ),
    ],
)
def test_damaged_archives_are_reported(prepare, tmp_path, change, said):
    write_archives(tmp_path / "archives")
    change(tmp_path / "archives")
    with pytest.raises(UserError, match=said) as caught:
        prepare()
    assert "\n" not in str(caught.value)
