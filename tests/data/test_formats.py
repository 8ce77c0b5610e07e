"""Image files of every kind and with every defect, against Pillow; and that no damage reaches MindSpore's decoder."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from src.data.formats import ImageError, decodable, decoder_takes, examine
from src.data.jpeg import check_jpeg, huffman_tables

PHOTO = Image.fromarray(load_sample_images().images[0][100:180, 200:320])
ALPHA = PHOTO.copy()
ALPHA.putalpha(Image.linear_gradient("L").resize(PHOTO.size))


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def rotated(image, form, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, form, exif=exif, **options)


def sixteen_bits(array):
    """A 16-bit RGB PNG, which Pillow does not write; big-endian samples (W3C PNG, section 7)."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = array.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


KINDS = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "progressive jpeg": encoded(PHOTO, "JPEG", progressive=True),
    "jpeg 4:4:4": encoded(PHOTO, "JPEG", subsampling=0),
    "jpeg with restarts": encoded(PHOTO, "JPEG", restart_marker_rows=1),
    "gray jpeg": encoded(PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "two pictures": encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(180)]),
    **{f"jpeg turned {value}": rotated(PHOTO, "JPEG", value) for value in range(1, 9)},
    "png": encoded(PHOTO, "PNG"),
    "gray png": encoded(PHOTO.convert("L"), "PNG"),
    "palette png": encoded(PHOTO.quantize(64), "PNG"),
    "palette png, transparent": encoded(PHOTO.quantize(64), "PNG", transparency=3),
    "rgba png": encoded(ALPHA, "PNG"),
    "gray png with alpha": encoded(ALPHA.convert("LA"), "PNG"),
    "black and white png": encoded(PHOTO.convert("1"), "PNG"),
    "png turned": rotated(PHOTO, "PNG", 8),
    "bmp": encoded(PHOTO, "BMP"),
    "palette bmp": encoded(PHOTO.quantize(64), "BMP"),
    "webp": encoded(PHOTO, "WEBP"),
    "lossless webp with alpha": encoded(ALPHA, "WEBP", lossless=True),
    "webp turned": rotated(PHOTO, "WEBP", 6),
    "tiff": encoded(PHOTO, "TIFF"),
    "tiff turned": rotated(PHOTO, "TIFF", 6),
}


def decoded(content):
    """What MindSpore makes of it, uint8 (H, W, 3)."""
    from mindspore.dataset import vision

    return vision.Decode()(np.frombuffer(decodable(content), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_is_the_upright_picture_that_pillow_sees(kind):
    content = KINDS[kind]
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert (decoded(content) == np.asarray(reference)).all()


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "gray jpeg", "jpeg turned 1", "palette png", "rgba png"])
def test_usual_files_go_to_the_decoder_as_they_are(kind):
    assert decodable(KINDS[kind]) is KINDS[kind]


@pytest.mark.parametrize("turned", [False, True])
def test_sixteen_bits_become_eight(turned):
    values = np.arange(0, 65536, 65536 // 400, dtype=np.uint16)[:400].reshape(20, 20)
    exif = Image.Exif()
    exif[0x0112] = 3 if turned else 1
    gray = decoded(encoded(Image.fromarray(values), "PNG", exif=exif))
    assert (gray == (values[::-1, ::-1] if turned else values)[..., None] >> 8).all()
    colours = np.stack([values, values.T, values[::-1]], -1)
    assert (decoded(sixteen_bits(colours)) == colours >> 8).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"this is no image", "is no image"),
        (KINDS["jpeg"][: len(KINDS["jpeg"]) // 2], "is a damaged image: image file is truncated"),
        (KINDS["png"][:-30], "is a damaged image"),
        (KINDS["webp"][: len(KINDS["webp"]) // 2], "is a damaged image"),
        (KINDS["bmp"][:2000], "is a damaged image: image file is truncated"),
        (b"\xff\xd8\xff" + bytes(500), "is a damaged JPEG image"),
        (encoded(PHOTO.quantize(64), "GIF"), "is a GIF image; supported are JPEG, PNG, BMP, WebP, TIFF"),
        (encoded(PHOTO.convert("F"), "TIFF"), "has pixels of 32 bits"),
    ],
)
def test_defects_are_named(content, said, tmp_path):
    with pytest.raises(ImageError, match=said):
        decodable(content)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert examine(str(path)) == (True, f"{path}: {caught(content)}")


def caught(content):
    with pytest.raises(ImageError) as error:
        decodable(content)
    return error.value


def test_an_image_is_known_by_name_or_content(tmp_path):
    for name, content, expected in (
        ("photo", KINDS["png"], (True, None)),
        ("photo.txt", KINDS["webp"], (True, None)),
        ("photo.png", KINDS["jpeg"], (True, None)),
        ("notes.txt", b"some notes", (False, None)),
        ("prices.txt", b"BMW 3 and 5, prices of today", (False, None)),
        ("Thumbs.db", b"", (False, None)),
    ):
        (tmp_path / name).write_bytes(content)
        assert examine(str(tmp_path / name)) == expected
    assert examine(str(tmp_path / "absent.jpg")) == (True, f"{tmp_path}/absent.jpg: No such file or directory")


def test_huffman_tables_that_are_none_are_refused():
    table = bytes([0, 0, 2] + [0] * 14) + b"\x01\x02"  # DC 0: two codes of two bits
    assert huffman_tables(table) == {("dc", 0)}
    assert huffman_tables(table + b"\x11" + table[1:]) == {("dc", 0), ("ac", 1)}
    assert huffman_tables(table[:-1]) == set()  # a symbol is missing
    assert huffman_tables(b"\x00\x03" + table[2:]) == set()  # three codes of one bit
    assert huffman_tables(table[:-1] + b"\x10") == set()  # no DC difference has 16 bits
    assert huffman_tables(b"\x04" + table[1:]) == set()  # there are tables 0 to 3


def damages(content, generator, count):
    """Yield damaged copies: cut, cut and closed, bits flipped anywhere or in the header, a run of zeros."""
    for number in range(count):
        damaged = bytearray(content)
        place = int(generator.integers(2, len(content)))
        if number % 5 == 0:
            del damaged[place:]
        elif number % 5 == 1:
            damaged[place:] = content[-12:]
        elif number % 5 == 4:
            damaged[place : place + int(generator.integers(1, 300))] = bytes(min(200, len(content) - place))
        else:
            last = len(content) if number % 5 == 2 else min(len(content), 700)
            for _ in range(int(generator.integers(1, 8))):
                damaged[int(generator.integers(0, last))] ^= 1 << int(generator.integers(0, 8))
        yield bytes(damaged)


def quiet_exit_code(work):
    """Run `work` in a process of its own, whose output is dropped; return how it ended."""
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "gray jpeg", "jpeg with restarts", "jpeg 4:4:4", "png"])
def test_no_damage_ends_the_process(kind, tmp_path, monkeypatch):
    """MindSpore's own decoder ends it on several of a hundred such JPEGs."""
    monkeypatch.chdir(tmp_path)
    decoder_takes(KINDS["jpeg"])  # MindSpore's first use starts threads, which a fork does not take along

    def decode_all():
        for damaged in damages(KINDS[kind], np.random.default_rng(1), 150):
            try:
                usable = decodable(damaged)
            except ImageError:
                continue
            decoder_takes(usable)

    assert quiet_exit_code(decode_all) == 0


def test_what_passes_the_check_pillow_can_decode():
    sound = 0
    for kind in ("jpeg", "progressive jpeg", "jpeg with restarts"):
        for damaged in damages(KINDS[kind], np.random.default_rng(2), 200):
            if damaged[:3] == b"\xff\xd8\xff" and check_jpeg(damaged) is not None:
                Image.open(io.BytesIO(damaged)).load()
                sound += 1
    assert sound > 200
