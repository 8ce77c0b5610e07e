"""Compare image files of every format with Pillow, and check that no damaged file reaches MindSpore's decoder."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from src.data.formats import ImageError, decodable, decoder_takes, examine, size_of, upright
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
    """Return a 16-bit RGB PNG, big-endian (W3C PNG, section 7); Pillow cannot write this format."""

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
    """Return the image that MindSpore decodes, turned upright, uint8 (H, W, 3)."""
    from mindspore.dataset import vision

    usable, orientation = decodable(content)
    return upright(vision.Decode()(np.frombuffer(usable, np.uint8)), orientation)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_decodes_to_the_upright_image_that_pillow_decodes(kind):
    content = KINDS[kind]
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert (decoded(content) == np.asarray(reference)).all()
    assert size_of(*decodable(content)) == reference.size


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [
        *((kind, 1) for kind in ("jpeg", "progressive jpeg", "gray jpeg", "palette png", "rgba png", "two pictures")),
        *((f"jpeg turned {value}", value) for value in range(1, 9)),
        ("png turned", 8),
    ],
)
def test_common_files_reach_the_decoder_unchanged(kind, orientation):
    content, found = decodable(KINDS[kind])
    assert content is KINDS[kind]
    assert found == orientation


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
        (b"this is not an image", "is not an image"),
        (KINDS["jpeg"][: len(KINDS["jpeg"]) // 2], "is a damaged image: image file is truncated"),
        (KINDS["png"][:-30], "is a damaged image"),
        (KINDS["webp"][: len(KINDS["webp"]) // 2], "is a damaged image"),
        (KINDS["bmp"][:2000], "is a damaged image: image file is truncated"),
        (b"\xff\xd8\xff" + bytes(500), "is a damaged JPEG image"),
        (encoded(PHOTO.quantize(64), "GIF"), "found GIF, expected JPEG, PNG, BMP, WebP, TIFF"),
        (encoded(PHOTO.convert("F"), "TIFF"), "found 32 bits, expected 8 or 16"),
    ],
)
def test_defects_are_reported(content, said, tmp_path):
    with pytest.raises(ImageError, match=said):
        decodable(content)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert examine(str(path)) == (True, f"{path}: {caught(content)}")


def caught(content):
    with pytest.raises(ImageError) as error:
        decodable(content)
    return error.value


def test_images_are_recognised_by_extension_or_content(tmp_path):
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


def test_invalid_huffman_tables_are_rejected():
    table = bytes([0, 0, 2] + [0] * 14) + b"\x01\x02"  # table DC 0 with two codes of two bits
    assert huffman_tables(table) == {("dc", 0)}
    assert huffman_tables(table + b"\x11" + table[1:]) == {("dc", 0), ("ac", 1)}
    assert huffman_tables(table[:-1]) == set()  # A symbol is missing.
    assert huffman_tables(b"\x00\x03" + table[2:]) == set()  # There are only two codes of one bit, not three.
    assert huffman_tables(table[:-1] + b"\x10") == set()  # A DC difference has at most 15 bits.
    assert huffman_tables(b"\x04" + table[1:]) == set()  # Tables have the numbers 0 to 3.


def damages(content, generator, count):
    """Yield damaged copies: truncated, truncated with the old end, flipped bits anywhere or in the header, zeros."""
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
    """Run `work` in a new process without stderr; return the exit code of the process."""
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
def test_damaged_files_do_not_crash_the_process(kind, tmp_path, monkeypatch):
    """Without our checks, MindSpore's decoder ends the process on several of a hundred such JPEGs."""
    monkeypatch.chdir(tmp_path)
    decoder_takes(KINDS["jpeg"])  # The first use of MindSpore starts threads; a fork would lose them.

    def decode_all():
        for damaged in damages(KINDS[kind], np.random.default_rng(1), 150):
            try:
                usable, _ = decodable(damaged)
            except ImageError:
                continue
            decoder_takes(usable)

    assert quiet_exit_code(decode_all) == 0


def test_pillow_can_decode_each_jpeg_that_passes_the_check():
    passed = 0
    for kind in ("jpeg", "progressive jpeg", "jpeg with restarts"):
        for damaged in damages(KINDS[kind], np.random.default_rng(2), 200):
            if damaged[:3] == b"\xff\xd8\xff" and check_jpeg(damaged) is not None:
                Image.open(io.BytesIO(damaged)).load()
                passed += 1
    assert passed > 200
