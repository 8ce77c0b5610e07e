"""The kept list of a large folder: read in place of the files, and made again when a folder has changed."""

import os
import shutil
import threading

import numpy as np
import pytest

from src.config.load import make_config
from src.data import listing
from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep the list of every folder, at once, and return the folder of the kept lists."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "MANY_FILES", 1)
    monkeypatch.setattr(listing, "RECENT", 0)
    return tmp_path / "cache" / "pocketspore"


@pytest.fixture
def opened(monkeypatch):
    """The files that were examined."""
    files = []
    examine = listing.examine
    monkeypatch.setattr(listing, "examine", lambda file: (files.append(file), examine(file))[1])
    return files


def data_of(root, **settings):
    return make_config({"data": {"name": "image_folder", "root": str(root), **settings}}).data


def age(root):
    """Set back the times of the folders. So the next change gives another time, however soon it comes."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        os.utime(folder, (1, 1))


def seen(data, split="train"):
    samples = load_samples(data, split)
    return samples.images, samples.labels.tolist(), samples.classes, samples.bad, samples.notes


def test_the_second_start_opens_no_file_and_finds_the_same(photos, cache, opened):
    (photos / "train" / "china" / "below").mkdir()
    shutil.copy(photos / "val" / "china" / "0.jpg", photos / "train" / "china" / "below" / "größe \udcff.jpg")
    inside = sorted(photos.rglob("*"))
    first = seen(data_of(photos))
    assert len(opened) == len(first[0]) == 25
    opened.clear()
    assert seen(data_of(photos)) == first
    assert not opened
    assert sorted(photos.rglob("*")) == inside  # The list is not kept in the folder of the images.
    assert len(list(cache.glob("*.npz"))) == 1


@pytest.mark.parametrize("root", [".", "photos", "../{}/photos"])
def test_paths_begin_as_the_root_does(photos, monkeypatch, root):
    monkeypatch.chdir(photos if root == "." else photos.parent)
    data = data_of(root.format(photos.parent.name))
    assert seen(data) == seen(data)


def test_small_folders_are_not_kept(photos, cache, monkeypatch):
    monkeypatch.setattr(listing, "MANY_FILES", 25)
    seen(data_of(photos))
    assert not cache.exists()


def test_each_change_of_a_folder_is_noticed(photos):
    china, data = photos / "train" / "china", data_of(photos)
    (china / "below").mkdir()
    changes = [
        lambda: shutil.copy(china / "0.jpg", china / "new.jpg"),
        lambda: (china / "new.jpg").unlink(),
        lambda: (china / "0.jpg").rename(china / "renamed.jpg"),
        lambda: (china / "1.jpg").replace(photos / "train" / "flower" / "moved.jpg"),
        lambda: shutil.copytree(china, photos / "train" / "new class"),
        lambda: shutil.copy(china / "2.jpg", china / "below" / "deep.jpg"),
        lambda: (china / "below").rename(china / ".hidden"),
        lambda: shutil.rmtree(photos / "train" / "new class"),
    ]
    for change in changes:
        age(photos)
        before = seen(data)
        change()
        after = seen(data)
        assert after[:3] != before[:3]
        files = [str(f) for f in (photos / "train").rglob("*.jpg") if f.parent.name != ".hidden"]
        assert sorted(after[0]) == sorted(files)


def test_a_folder_in_the_place_of_another_is_noticed(photos):
    data = data_of(photos)
    seen(data)
    photos.rename(photos.with_name("old"))
    shutil.copytree(photos.with_name("old"), photos)  # with the times of the old folders
    (photos / "train" / "china" / "0.jpg").unlink()
    shutil.copystat(photos.with_name("old") / "train" / "china", photos / "train" / "china")
    assert len(seen(data)[0]) == 23


def test_what_was_no_whole_image_is_examined_again(photos, opened):
    file, text = photos / "train" / "china" / "0.jpg", photos / "train" / "china" / "notes.txt"
    content = file.read_bytes()
    file.write_bytes(content[:1500])
    text.write_text("not an image")
    data = data_of(photos, on_bad_image="skip")
    (defect,) = load_samples(data, "train").bad.values()
    assert defect.startswith(f"{file}: is a damaged")
    opened.clear()
    assert load_samples(data, "train").notes == (f"{photos}/train: ignored files, hidden or not images: 1",)
    assert set(opened) == {str(file), str(text)}
    with pytest.raises(UserError, match="is a damaged"):
        load_samples(data_of(photos), "train")
    file.write_bytes(content)  # The name stays, so the folder does not change.
    assert not load_samples(data, "train").bad


def test_a_folder_that_has_just_changed_is_not_kept(photos, cache, monkeypatch):
    monkeypatch.setattr(listing, "RECENT", 3600)
    seen(data_of(photos))
    assert not list(cache.glob("*.npz"))


def test_a_change_during_the_listing_is_not_missed(photos, monkeypatch):
    write = listing.write_listing
    late = photos / "train" / "china" / "late.jpg"

    def change_first(*arguments):
        shutil.copy(photos / "train" / "china" / "0.jpg", late)
        write(*arguments)

    # The clock of a file system is up to 4 ms behind, so a change must be at least so old to count as older.
    monkeypatch.setattr(listing, "RECENT", 0.1)
    monkeypatch.setattr(listing, "write_listing", change_first)
    assert str(late) not in seen(data_of(photos))[0]
    assert str(late) in seen(data_of(photos))[0]


def test_a_damaged_list_is_made_again(photos, cache, opened):
    data = data_of(photos)
    expected = seen(data)
    (kept,) = cache.glob("*.npz")
    content = kept.read_bytes()
    generator = np.random.default_rng(0)
    damaged = [b"", b"no list", content[: len(content) // 2]]
    for position in generator.choice(len(content), 60, replace=False):
        damaged.append(content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :])
    for wrong in damaged:
        kept.write_bytes(wrong)
        assert seen(data) == expected
    opened.clear()
    assert seen(data) == expected
    assert not opened


def test_both_parts_of_a_folder_use_one_list(photos, cache, opened):
    data = data_of(photos / "train", val_fraction=0.3)
    train = seen(data)
    opened.clear()
    val = seen(data, "val")
    assert not opened
    assert len(train[0]) + len(val[0]) == 24
    assert len(list(cache.glob("*.npz"))) == 1


def test_a_cache_that_cannot_be_written_is_said(photos, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the folder")
    images, *_, notes = seen(data_of(photos))
    assert len(images) == 24
    assert len(notes) == 1
    assert "the list of files cannot be kept, so each start makes it again" in notes[0]
    assert str(tmp_path / "cache") in notes[0]


def test_of_processes_that_start_together_one_opens_the_files(photos, opened):
    data = data_of(photos)
    age(photos)
    expected = seen(data)
    (photos / "train" / "china" / "0.jpg").unlink()
    opened.clear()
    found = []
    threads = [threading.Thread(target=lambda: found.append(seen(data)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected[0][1:]] * 4
    assert len(opened) == 23


def test_an_image_that_is_damaged_in_place_is_found_when_it_is_decoded(photos):
    config = make_config({"data": {"name": "image_folder", "root": str(photos), "image_size": 32}})
    seen(config.data)
    file = photos / "train" / "china" / "1.jpg"
    file.write_bytes(file.read_bytes()[:1500])
    samples = load_samples(config.data, "train")
    assert not samples.bad
    with pytest.raises(UserError, match=r"1\.jpg: is a damaged"):
        list(eval_loader(config, samples, 8).epoch())
