"""What cannot be read is named in one error, or left out and reported; training and eval.py agree."""

import contextlib
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config.schema import DataConfig
from src.data import listing
from src.data.datasets import load_samples
from src.data.formats import read_file
from src.errors import UserError
from src.evaluation.output import find_images

NOBODY = 65534
LOOP = "is a link to a folder that contains the link"
DENIED, SPECIAL, MISSING = "Permission denied", "is not a regular file", "No such file or directory"


def save_images(folder, count=3):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def root():
    """An image folder with the classes cat and dog, where also another user may look."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        for split in ("train", "val"):
            for name in ("cat", "dog"):
                save_images(folder / split / name)
        save_images(folder / "elsewhere")
        yield folder
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)


@contextlib.contextmanager
def other_user():
    """Act as the user nobody, because root may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def locked(path):
    save_images(path)
    path.chmod(0)


def bind(path):
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


def mutual(path):
    """Make a link from cat to dog and a link from dog to cat."""
    path.symlink_to("../dog")
    (path.parent.parent / "dog" / "back").symlink_to("../cat")


# What is wrong in the class cat or beside it, how to make it, and the reason in the error.
CASES = [
    ("cat/locked", locked, DENIED),
    ("cat/up", lambda path: path.symlink_to(".."), LOOP),
    ("cat/self", lambda path: path.symlink_to("."), LOOP),
    ("cat/root", lambda path: path.symlink_to("/"), LOOP),
    ("cat/mutual", mutual, LOOP),
    ("cat/circle.jpg", lambda path: path.symlink_to("circle.jpg"), "Too many levels of symbolic links"),
    ("cat/pipe.jpg", os.mkfifo, SPECIAL),
    ("cat/pipe", os.mkfifo, SPECIAL),
    ("cat/socket.png", bind, SPECIAL),
    ("cat/zero.png", lambda path: path.symlink_to("/dev/zero"), SPECIAL),
    ("cat/lost.png", lambda path: path.symlink_to("nowhere.png"), MISSING),
    ("owl", lambda path: path.symlink_to("../unmounted"), MISSING),
]


@pytest.mark.parametrize(("name", "make", "reason"), CASES, ids=[name for name, _, _ in CASES])
def test_what_cannot_be_read_is_named_or_left_out(root, name, make, reason):
    data = DataConfig(name="image_folder", root=str(root))
    expected = load_samples(data, "train").images
    path = root / "train" / name
    make(path)
    with other_user():
        with pytest.raises(UserError, match="data.root: found folders or files that cannot be read") as error:
            load_samples(data, "train")
        assert reason in str(error.value)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value) or name == "cat/mutual"  # the error names the second link of the circle
        skipped = load_samples(data.model_copy(update={"on_bad_image": "skip"}), "train")
        with pytest.raises(UserError, match="--images: found folders or files") as error:
            find_images(path.parent)
        assert reason in str(error.value)
    found = [image for image in skipped.images if "mutual" not in image and "back" not in image]
    assert (found, skipped.classes, skipped.bad) == (expected, ["cat", "dog"], {})
    assert reason in skipped.unreadable.values()
    assert len(skipped.notes) == 1
    assert skipped.notes[0].startswith("left out (data.on_bad_image): found folders or files that cannot be read: ")


@pytest.mark.parametrize(
    ("make", "reason"),
    [(locked, DENIED), (lambda path: path.symlink_to("."), LOOP), (lambda path: path.symlink_to("../.."), LOOP)],
)
@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_class_folder_that_cannot_be_read_is_always_an_error(root, make, reason, on_bad_image):
    path = root / "train" / "owl"
    make(path)
    with other_user(), pytest.raises(UserError) as error:
        load_samples(DataConfig(name="image_folder", root=str(root), on_bad_image=on_bad_image), "train")
    assert str(error.value).startswith(f"data.root: found folders or files that cannot be read: {path}: {reason}; make")


def test_one_error_names_everything_that_cannot_be_read(root):
    for name, make, _ in CASES[:4]:
        make(root / "train" / name)
    with other_user(), pytest.raises(UserError) as error:
        load_samples(DataConfig(name="image_folder", root=str(root)), "train")
    assert all(str(root / "train" / name) in str(error.value) for name, _, _ in CASES[:4])


def test_training_and_images_follow_the_same_links(root):
    cat = root / "train" / "cat"
    (cat / "more").symlink_to("../../elsewhere")
    (cat / "one.png").symlink_to("../../elsewhere/0.png")
    (cat / ".hidden").mkdir()
    shutil.copy(cat / "0.png", cat / ".hidden" / "0.png")
    expected = [str(cat / name) for name in ("0.png", "1.png", "2.png", "more/0.png", "more/1.png", "more/2.png")]
    expected.append(str(cat / "one.png"))
    samples = load_samples(DataConfig(name="image_folder", root=str(root)), "train")
    assert [image for image in samples.images if "/cat/" in image] == expected
    assert find_images(cat) == expected


@pytest.mark.parametrize("where", ["--images", "csv"])
def test_a_fifo_that_the_user_names_is_refused(root, where):
    pipe = root / "pipe.jpg"
    os.mkfifo(pipe)
    (root / "train.csv").write_text("path,label\npipe.jpg,cat\n")
    with pytest.raises(UserError, match="pipe.jpg: is not a regular file"):
        find_images(pipe) if where == "--images" else load_samples(DataConfig(name="csv", root=str(root)), "train")
    with pytest.raises(OSError, match="is not a regular file"):
        read_file(pipe)


def test_the_list_of_a_folder_with_problems_is_not_kept(root, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    monkeypatch.setattr(listing, "MANY_FILES", 1)
    os.mkfifo(root / "train" / "cat" / "pipe")
    found = listing.list_files(root / "train", ["cat", "dog"])
    assert list(found.problems.values()) == [SPECIAL]
    assert not (root / "cache").exists()


def test_check_data_counts_what_cannot_be_read_as_bad(root, script):
    os.mkfifo(root / "train" / "cat" / "pipe.jpg")
    (root / "data.yaml").write_text(f"data: {{name: image_folder, root: {root}}}\n")
    shutil.rmtree(root / "val")
    done = script("tools/check_data.py", "--config", "data.yaml", "--json", "report.json", cwd=root)
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads((root / "report.json").read_text())
    assert report["splits"]["train"]["bad"] == {str(root / "train" / "cat" / "pipe.jpg"): SPECIAL}
