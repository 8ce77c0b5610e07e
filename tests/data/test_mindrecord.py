"""Check that a packed data set has the same images and labels as its source."""

import itertools
import json

import numpy as np
import pytest
from mindspore.mindrecord import FileWriter
from PIL import Image

from src.config.load import make_config
from src.data import mindrecord
from src.data.datasets import load_samples, splits_of
from src.data.loading import eval_loader, train_loader
from src.errors import UserError
from tools import make_mindrecord


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """Return a function that runs the tool and returns the folder that it wrote."""

    def run(source, *arguments):
        out = tmp_path / "packed"
        monkeypatch.setattr("sys.argv", ["make_mindrecord.py", str(source), str(out), *arguments])
        make_mindrecord.main()
        return out

    return run


def config_of(root, name="mindrecord", **train):
    data = {"name": name, "root": str(root), "image_size": 32}
    return make_config({"data": data, "train": {"batch_size": 5, **train}})


def batches_of(loader, epoch=0):
    images, labels = zip(*loader.epoch(epoch))
    return np.concatenate(images), np.concatenate(labels)


def test_packed_photos_equal_the_source(photos, pack):
    folder = photos / "train" / "china"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "0.jpg").resize((90, 60)).save(folder / "turned.jpg", exif=exif)
    Image.open(folder / "1.jpg").save(folder / "other.webp")
    out = pack(photos, "--shards", "3")
    names = sorted(path.name for path in out.iterdir() if path.suffix == ".mindrecord")
    assert names == [*(f"train-{i:03d}.mindrecord" for i in range(3)), "val-000.mindrecord"]
    assert splits_of(config_of(out).data) == ("train", "val")
    for split in ("train", "eval"):
        classes = ["flower", "china"]  # A checkpoint may have another order of classes.
        expected = eval_loader(
            config_of(photos, "image_folder"), load_samples(config_of(photos, "image_folder").data, split, classes)
        )
        actual = eval_loader(config_of(out), load_samples(config_of(out).data, split, classes))
        for left, right in zip(batches_of(expected), batches_of(actual)):
            assert (left == right).all()
    samples = load_samples(config_of(out).data, "train")
    # A file that MindSpore's decoder reads stays as it is, so the packed photos are not larger than the files.
    rows = list(samples.images.pipeline(np.arange(14), 1).create_tuple_iterator(num_epochs=1, output_numpy=True))
    for file, (content, orientation) in zip(sorted(folder.iterdir()), rows):
        assert file.suffix == ".webp" or content.tobytes() == file.read_bytes()
        assert orientation == (6 if file.name == "turned.jpg" else 1)
    assert samples.classes == ["china", "flower"]
    # Training yields complete batches of different images; the incomplete last batch is dropped.
    _, labels = batches_of(train_loader(config_of(out), samples), 1)
    assert len(labels) == 25
    taken = eval_loader(config_of(out), samples.take([25, 3]))
    assert (batches_of(taken)[0][1] == batches_of(eval_loader(config_of(out), samples))[0][3]).all()


def test_a_data_set_packed_in_the_first_format_is_read(photos, tmp_path):
    """Format 1 had no orientations: a photo with an EXIF orientation was packed as a PNG of the upright image."""
    files = sorted((photos / "val").rglob("*.jpg"))
    writer = FileWriter(str(tmp_path / "val-000.mindrecord"), shard_num=1)
    writer.add_schema({"image": {"type": "bytes"}}, "images")
    writer.write_raw_data([{"image": file.read_bytes()} for file in files])
    writer.commit()
    split = {"files": ["val-000.mindrecord"], "labels": [0] * 4 + [1] * 4, "shape": None}
    described = {"format": 1, "classes": ["china", "flower"], "splits": {"val": split}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    source = config_of(photos, "image_folder")
    expected = eval_loader(source, load_samples(source.data, "val", ["china", "flower"]))
    actual = eval_loader(config_of(tmp_path), load_samples(config_of(tmp_path).data, "val"))
    for left, right in zip(batches_of(expected), batches_of(actual)):
        assert (left == right).all()


def test_an_epoch_of_packed_photos_can_start_at_any_batch(photos, pack):
    for number, file in enumerate(sorted((photos / "train").rglob("*.jpg"))):
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 3 == 1 else 1
        Image.open(file).resize((40 + 7 * number, 200 - 8 * number)).save(file, exif=exif)
    config = config_of(pack(photos))
    for workers in (1, 2):
        config.data.workers = workers
        loader = train_loader(config, load_samples(config.data, "train"))
        whole, rest = list(loader.epoch(2)), list(loader.epoch(2, skip=3))
        assert (len(whole), len(rest)) == (4, 1)
        assert all((left == right).all() for left, right in zip(whole[3], rest[0]))


def test_records_are_written_in_parts_of_limited_size(tmp_path, monkeypatch):
    monkeypatch.setattr(mindrecord, "BYTES_AT_ONCE", 500)
    sizes = np.random.default_rng(0).integers(1, 400, 50).tolist()
    contents = iter([(bytes([i]) * size, 1) for i, size in enumerate(sizes)])
    parts = iter(lambda: [len(record["image"]) for record in mindrecord.next_records(contents)], [])
    parts = list(parts)
    assert list(itertools.chain(*parts)) == sizes
    # Without its last record, no part reaches the limit.
    assert all(sum(part[:-1]) < 500 <= sum(part) for part in parts[:-1])


def test_packed_arrays_equal_the_source(pack):
    digits = make_config({"data": {"name": "digits"}}).data
    out = pack("digits", "--shards", "4")
    for split in ("train", "test"):
        expected, actual = load_samples(digits, split), load_samples(config_of(out).data, split)
        assert (expected.images == actual.images).all()
        assert (expected.labels == actual.labels).all()
        assert expected.classes == actual.classes


def test_only_large_images_are_resized(photos, pack):
    small = photos / "val" / "china" / "0.jpg"
    Image.open(small).resize((70, 50)).save(small)
    out = pack(photos, "--short-side", "60")
    images = load_samples(config_of(out).data, "eval").images
    rows = images.pipeline(np.arange(2), 1).create_tuple_iterator(num_epochs=1, output_numpy=True)
    contents = [row.tobytes() for (row,) in rows]
    assert contents[0] == small.read_bytes()
    (out / "one.jpg").write_bytes(contents[1])
    assert Image.open(out / "one.jpg").size == (60, 60)


def test_bad_photo_is_an_error_or_is_left_out(photos, pack, tmp_path, capsys):
    bad = photos / "train" / "china" / "5.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(UserError, match=f"{bad}: is a damaged"):
        pack(photos)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    out = pack(photos, "data.on_bad_image=skip")
    assert "train: bad images left out (data.on_bad_image): 1" in capsys.readouterr().out
    assert len(load_samples(config_of(out).data, "train")) == 23


def test_damaged_packed_data_set_is_reported(photos, pack):
    out = pack(photos, "--shards", "1")
    data, description = config_of(out).data, out / "dataset.json"
    file = out / "val-000.mindrecord"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(UserError, match="val-000.mindrecord: no such file"):
        load_samples(data, "eval")
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="the data pipeline failed"):
        list(eval_loader(config_of(out), load_samples(data, "eval")).epoch())
    description.write_text(json.dumps({**json.loads(description.read_text()), "format": 9}))
    with pytest.raises(UserError, match=r"dataset.json: unsupported format \(found 9, expected 1, 2\)"):
        load_samples(data, "train")
    description.write_text("{")
    with pytest.raises(UserError, match="dataset.json: is truncated or damaged"):
        load_samples(data, "train")
    description.unlink()
    with pytest.raises(UserError, match="dataset.json: no such file; tools/make_mindrecord.py writes it"):
        load_samples(data, "train")
