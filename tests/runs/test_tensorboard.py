"""Read TensorBoard events by the descriptions of their formats: TFRecord, CRC-32C and the wire format of protobuf."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from src.config.load import make_config
from src.runs.folder import RunFolder
from src.runs.state import RunState

CLASSES = ["T-shirt/top", "Größe", "猫"]


def crc32c(content):
    """Return the CRC-32 with Castagnoli's polynomial, reflected, computed bit by bit (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc):
    """Return a CRC rotated by 15 bits plus an offset, as TensorFlow stores it (tensorflow/core/lib/hash/crc32c.h)."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(content):
    """Return the TFRecords of a file: length (uint64), its checksum, data, checksum of the data; little-endian."""
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
    """Return the fields of a protobuf message: {field number: list of ints, floats or bytes}."""
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
    """Return (file version, steps of the session starts, scalars, images); scalars and images are {(tag, step): value}.

    A session start hides the values that were recorded before it for its step and later steps.
    """
    version, starts, scalars, images = None, [], {}, {}
    for record in read_records(path.read_bytes()):
        event = read_fields(record)  # 1 wall_time, 2 step, 3 file_version, 5 summary, 7 session_log
        step = event.get(2, [0])[0]
        assert event[1][0] > 1.7e9
        if 3 in event:
            version = event[3][0].decode()
        if 7 in event:
            assert read_fields(event[7][0]) == {1: [1]}
            starts.append(step)
            scalars = {key: value for key, value in scalars.items() if key[1] < step}
        for value in read_fields(event.get(5, [b""])[0]).get(1, []):
            value = read_fields(value)  # 1 tag, 2 simple_value, 4 image
            tag = value[1][0].decode()
            if 2 in value:
                assert (tag, step) not in scalars
                scalars[tag, step] = value[2][0]
            else:
                images[tag, step] = read_fields(value[4][0])
    return version, starts, scalars, images


def row_of(epoch, averaged=False):
    """Return a row of metrics.csv with random values; `averaged` adds the columns of the moving average."""
    generator = np.random.default_rng(epoch)
    columns = ["train_loss", "train_top1", "test_loss", "test_top1", "test_top5"]
    columns += ["average_loss", "average_top1", "average_top5"] if averaged else []
    columns += ["images_per_second", "data_wait_fraction", "seconds", "lr"]
    return {"epoch": epoch, **dict(zip(columns, generator.random(len(columns)).tolist()))}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(make_config({}))
    return folder


def log(folder, rows, best, rates):
    """Log the last of the `rows`; each element of its confusion matrix is the number of the epoch."""
    epoch = rows[-1]["epoch"]
    state = RunState(epoch=epoch, rows=rows, best={"epoch": best, "top1": 0.5, "top5": 1.0, "loss": 0.5})
    folder.log_epoch(state, np.float32(rates), np.full((3, 3), epoch))
    return state


@pytest.mark.parametrize("averaged", [False, True])
def test_events_contain_rows_learning_rates_and_the_best_confusion_matrix(folder, averaged):
    folder.open_events(0)
    rates = np.float32([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.05, 0.02, 0.0]])
    rows = [row_of(epoch, averaged) for epoch in (1, 2, 3)]
    for i, best in enumerate((1, 2, 2)):
        state = log(folder, rows[: i + 1], best, rates[i])
    folder.finish(state, {}, CLASSES)

    (file,) = (folder.path / "events").iterdir()
    assert "tfevents" in file.name
    version, starts, scalars, images = read_file(file)
    assert (version, starts) == ("brain.Event:2", [1])
    expected = {("lr", step): rate for step, rate in enumerate(rates.ravel().tolist(), 1)}
    for row in rows:
        for split in ("train", "test", *(["average"] if averaged else [])):
            for metric in ("loss", "top1", *([] if split == "train" else ["top5"])):
                expected[f"{metric}/{split}", 3 * row["epoch"]] = row[f"{split}_{metric}"]
        expected["epoch", 3 * row["epoch"]] = row["epoch"]
        for key in ("images_per_second", "data_wait_fraction"):
            expected[f"speed/{key}", 3 * row["epoch"]] = row[key]
    assert scalars.keys() == expected.keys()
    assert scalars == pytest.approx(expected, rel=1e-6)
    (((tag, step), image),) = images.items()
    assert (tag, step) == ("confusion/best", 6)
    picture = Image.open(io.BytesIO(image[4][0]))
    assert (picture.format, picture.height, picture.width) == ("PNG", image[1][0], image[2][0])


def test_opening_again_adds_a_file_that_hides_repeated_steps(folder):
    folder.open_events(0)
    rows = [row_of(1), row_of(2)]
    log(folder, rows[:1], 1, [0.1, 0.1])
    log(folder, rows, 1, [0.1, 0.1])
    folder.open_events(2)
    log(folder, rows, 1, [0.1, 0.1])
    old, new = sorted((folder.path / "events").iterdir())
    _, starts, scalars, _ = read_file(old)
    assert starts == [1]
    assert {step for _, step in scalars} == {1, 2, 3, 4}
    _, starts, scalars, _ = read_file(new)
    assert starts == [3]
    assert {step for _, step in scalars} == {3, 4}


def test_the_steps_that_a_rollback_repeats_are_hidden(folder):
    folder.open_events(0)
    rows = [row_of(1), row_of(2)]
    log(folder, rows[:1], 1, [0.1, 0.1])
    log(folder, rows, 1, [0.1, 0.1])
    log(folder, rows, 1, [0.05, 0.05])
    (file,) = (folder.path / "events").iterdir()
    _, starts, scalars, _ = read_file(file)
    assert starts == [1, 3]
    rates = {step: value for (tag, step), value in scalars.items() if tag == "lr"}
    assert rates == pytest.approx({1: 0.1, 2: 0.1, 3: 0.05, 4: 0.05})


def test_the_events_of_a_killed_run_contain_all_logged_epochs(folder):
    folder.open_events(0)
    log(folder, [row_of(1)], 1, [0.1, 0.1])
    # The file is read without closing it, as a killed process would leave it.
    (file,) = (folder.path / "events").iterdir()
    assert {step for _, step in read_file(file)[2]} == {1, 2}


def test_overwriting_removes_the_events_of_the_earlier_run_and_nothing_else(folder):
    folder.open_events(0)
    (folder.path / "events" / "notes.txt").write_text("mine")
    assert len(list((folder.path / "events").iterdir())) == 2
    folder.lock.close()
    RunFolder(folder.path, overwrite=True).start(make_config({}))
    assert [path.name for path in (folder.path / "events").iterdir()] == ["notes.txt"]


def test_checksum_of_the_reader():
    # The expected values are from RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E
