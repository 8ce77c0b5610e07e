"""TensorBoard's events, read back after the formats' descriptions: TFRecord framing, CRC-32C and protobuf's wire."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from src.config import make_config
from src.engine.events import Events
from src.engine.run_folder import RunFolder
from src.errors import UserError

CLASSES = ["T-shirt/top", "Größe", "猫"]


def crc32c(content):
    """CRC-32 with Castagnoli's polynomial, reflected, bit by bit (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc):
    """TensorFlow's rotation by 15 bits and offset (tensorflow/core/lib/hash/crc32c.h)."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(content):
    """Return the TFRecords of a file: length (uint64), its checksum, data, its checksum; all little-endian."""
    records, position = [], 0
    while position < len(content):
        header = content[position : position + 8]
        (length,) = struct.unpack("<Q", header)
        record = content[position + 12 : position + 12 + length]
        checksums = content[position + 8 : position + 12] + content[position + 12 + length : position + 16 + length]
        assert struct.unpack("<II", checksums) == (masked(crc32c(header)), masked(crc32c(record)))
        records.append(record)
        position += 16 + length
    return records


def read_fields(message):
    """Return the fields of a protobuf message: lists of ints, floats or bytes by field number."""
    fields, position = {}, 0

    def varint():
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            value = varint()
        else:
            size = {1: 8, 2: None, 5: 4}[wire_type]
            size = varint() if size is None else size
            value = message[position : position + size]
            position += size
            if wire_type != 2:
                (value,) = struct.unpack("<d" if wire_type == 1 else "<f", value)
        fields.setdefault(number, []).append(value)
    return fields


def read_file(path):
    """Return (file version, step of the START of a session, scalars, images); the latter are (tag, step): value."""
    version, start, scalars, images = None, None, {}, {}
    for record in read_records(path.read_bytes()):
        event = read_fields(record)  # 1 wall_time, 2 step, 3 file_version, 5 summary, 7 session_log
        step = event.get(2, [0])[0]
        assert event[1][0] > 1.7e9
        if 3 in event:
            version = event[3][0].decode()
        if 7 in event:
            assert read_fields(event[7][0]) == {1: [1]}
            start = step
        for value in read_fields(event.get(5, [b""])[0]).get(1, []):
            value = read_fields(value)  # 1 tag, 2 simple_value, 4 image
            tag = value[1][0].decode()
            if 2 in value:
                assert (tag, step) not in scalars
                scalars[tag, step] = value[2][0]
            else:
                images[tag, step] = read_fields(value[4][0])
    return version, start, scalars, images


def row_of(epoch):
    generator = np.random.default_rng(epoch)
    columns = ["train_loss", "train_top1", "test_loss", "test_top1", "test_top5"]
    columns += ["images_per_second", "data_wait_fraction", "seconds", "lr"]
    return {"epoch": epoch, **dict(zip(columns, generator.random(len(columns)).tolist()))}


def best_of(row):
    return {"epoch": row["epoch"], "top1": row["test_top1"], "top5": 1.0, "loss": row["test_loss"]}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_events_hold_the_rows_the_rates_and_the_best_confusion(folder):
    folder.start(make_config({}))
    rates = np.float32([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.05, 0.02, 0.0]])
    rows = [row_of(epoch) for epoch in (1, 2, 3)]
    confusions = [np.full((3, 3), epoch) for epoch in (1, 2, 3)]
    best = best_of(rows[1])
    for row, own_rates, confusion, so_far in zip(rows, rates, confusions, (best_of(rows[0]), best, best)):
        folder.log_epoch(row, so_far, own_rates, confusion)
    folder.finish({"best": best}, CLASSES)

    (file,) = (folder.path / "events").iterdir()
    assert "tfevents" in file.name
    version, start, scalars, images = read_file(file)
    assert (version, start) == ("brain.Event:2", 1)
    expected = {("lr", step): rate for step, rate in enumerate(rates.ravel().tolist(), 1)}
    for row in rows:
        tags = {"loss": "loss", "top1": "top1"}
        for split in ("train", "test"):
            expected |= {(f"{tag}/{split}", 3 * row["epoch"]): row[f"{split}_{key}"] for key, tag in tags.items()}
        expected["top5/test", 3 * row["epoch"]] = row["test_top5"]
        expected["epoch", 3 * row["epoch"]] = row["epoch"]
        for key in ("images_per_second", "data_wait_fraction"):
            expected[f"speed/{key}", 3 * row["epoch"]] = row[key]
    assert scalars.keys() == expected.keys()
    assert scalars == pytest.approx(expected, rel=1e-6)
    (((tag, step), image),) = images.items()
    assert (tag, step) == ("confusion/best", 6)
    picture = Image.open(io.BytesIO(image[4][0]))
    assert (picture.format, picture.height, picture.width) == ("PNG", image[1][0], image[2][0])


def test_opening_again_adds_a_file_that_hides_what_is_repeated(folder):
    folder.start(make_config({}))
    row = row_of(1)
    folder.log_epoch(row, best_of(row), np.float32([0.1, 0.1]), np.eye(3, dtype=int))
    folder.log_epoch({**row, "epoch": 2}, best_of(row), np.float32([0.1, 0.1]), np.eye(3, dtype=int))
    resumed = Events(folder.path / "events", done=2)
    resumed.log_epoch({**row, "epoch": 2}, np.float32([0.1, 0.1]))
    resumed.close()
    first, second = sorted((folder.path / "events").iterdir())
    _, start, scalars, _ = read_file(first)
    assert start == 1
    assert {step for _, step in scalars} == {1, 2, 3, 4}
    _, start, scalars, _ = read_file(second)
    # TensorBoard hides what earlier files say of this step and later ones.
    assert start == 3
    assert {step for _, step in scalars} == {3, 4}


def test_a_killed_run_has_all_epochs_that_were_logged(folder):
    folder.start(make_config({}))
    row = row_of(1)
    folder.log_epoch(row, best_of(row), np.float32([0.1, 0.1]), np.eye(3, dtype=int))
    # Nothing is closed: the file is read as a killed process leaves it.
    (file,) = (folder.path / "events").iterdir()
    assert {step for _, step in read_file(file)[2]} == {1, 2}


def test_no_events_unless_asked_for(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(make_config({"log": {"tensorboard": False}}))
    row = row_of(1)
    folder.log_epoch(row, best_of(row), np.float32([0.1]), np.eye(3, dtype=int))
    folder.finish({"best": best_of(row)}, CLASSES)
    assert not (folder.path / "events").exists()


def test_overwriting_removes_the_events_of_the_run_before_and_nothing_else(folder):
    folder.start(make_config({}))
    (folder.path / "events" / "notes.txt").write_text("mine")
    before = {path.name for path in (folder.path / "events").iterdir()}
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder(folder.path)
    RunFolder(folder.path, overwrite=True).start(make_config({"log": {"tensorboard": False}}))
    assert [path.name for path in (folder.path / "events").iterdir()] == ["notes.txt"]
    assert len(before) == 2


def test_checksum_of_the_reader():
    # RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E
