"""Image files as bytes: what is wrong with them, and bytes of the same picture that MindSpore's decoder reads right.

MindSpore's decoder (2.7.0, measured) ends the process on many a damaged JPEG, ignores orientation and knows no WebP. So
it gets sound, upright JPEG and PNG as they are, and anything else goes through Pillow.
"""

import io
import os
import zlib
from pathlib import Path

import numpy as np
from mindspore.dataset import vision
from PIL import Image

from src.data.jpeg import MAX_PIXELS, check_jpeg

FORMATS = ("JPEG", "PNG", "BMP", "WebP", "TIFF")
# A file of such a name is meant to be an image; another one counts only if its first bytes say that it is one.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".heic", ".avif")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # the EXIF tag; values 2 to 8 are the ways to turn the picture upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image that cannot be decoded; the message says why, without the file's name."""


def format_of(head):
    """Return which of FORMATS a file's first 12 bytes begin, or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(PNG_SIGNATURE):
        return "PNG"
    if head.startswith(b"BM") and head[6:10] == bytes(4):  # more than two letters, which a text may begin with
        return "BMP"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return "TIFF" if head[:4] in (b"II*\0", b"MM\0*") else None


def examine(path):
    """Return whether the file at `path` is, or by its name should be, an image, and what is wrong with it, or None.

    A hidden file is none. It is decoded only where its end looks wrong.
    """
    if os.path.basename(path).startswith("."):
        return False, None
    named_so = os.path.splitext(path)[1].lower() in SUFFIXES
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(12)
            if not named_so and format_of(head) is None:
                return False, None
            if not has_end(file, head, size):
                file.seek(0)
                decodable(file.read())
    except OSError as error:
        return True, f"{path}: {error.strerror}"
    except ImageError as problem:
        return True, f"{path}: {problem}"
    return True, None


def has_end(file, head, size):
    """Tell whether an open file ends as its format demands, which one cut short does not; False where unknown."""
    kind = format_of(head)
    if kind in ("JPEG", "PNG"):
        file.seek(max(0, size - 64))
        return (b"\xff\xd9" if kind == "JPEG" else b"IEND") in file.read(64)
    if kind in ("BMP", "WebP") and len(head) == 12:
        start, extra = (2, 0) if kind == "BMP" else (4, 8)
        return size >= int.from_bytes(head[start : start + 4], "little") + extra > 12
    return False


def decodable(content):
    """Return bytes that MindSpore's decoder turns into the upright RGB picture of an image file's `content`.

    A picture that cannot be decoded is a `ImageError`. Gray becomes RGB, transparency is dropped, 16 bits become 8.
    """
    if not content:
        raise ImageError("is empty")
    kind = format_of(content[:12])
    check = {"JPEG": check_jpeg, "PNG": check_png}.get(kind)
    exif = check(content) if check else None
    if exif is not None and orientation_of(exif) is None:
        return content
    return bitmap(content)


def bitmap(content):
    """Return the BMP of the upright RGB picture in an image file's `content`."""
    written = io.BytesIO()
    decode(content).save(written, "BMP")
    return written.getvalue()


def decode(content):
    """Return the upright RGB picture of an image file's `content`, a Pillow image; one without is a `ImageError`."""
    kind = format_of(content[:12])
    try:
        with Image.open(io.BytesIO(content)) as image:
            if kind is None:
                raise ImageError(f"is a {image.format} image; supported are {', '.join(FORMATS)}")
            image.load()
            orientation = orientation_of(image.info.get("exif")) if kind != "TIFF" else None
            image = image.transpose(UPRIGHT[orientation]) if orientation else image
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ImageError("has pixels of 32 bits; supported are 8 and 16")
            return image.convert("RGB")
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("is no image" if kind is None else f"is a damaged {kind} image") from None
    except Exception as error:  # on damaged files Pillow raises whatever its parsers meet
        raise ImageError(f"is a damaged image: {error}") from None


def size_of(content):
    """Return (width, height) of what `decodable` returned."""
    with Image.open(io.BytesIO(content)) as image:
        return image.size


def decoder_takes(content, operations=()):
    """Tell whether MindSpore's decoder, and further `operations`, take what `decodable` returned."""
    encoded = np.frombuffer(content, np.uint8)
    try:
        for operation in (vision.Decode(), *operations):
            operation(encoded)
    except RuntimeError:
        remove_left_behind()
        return False
    return True


def remove_left_behind():
    """Remove the copy of a bad image that MindSpore's decoder leaves in the working folder."""
    for left_behind in Path().glob("abnormal_image.*"):
        left_behind.unlink(missing_ok=True)


def orientation_of(exif):
    """Return the key of UPRIGHT that EXIF bytes name, or None; damaged ones say nothing."""
    if not exif:
        return None
    found = Image.Exif()
    try:
        found.load(exif)
        value = found.get(ORIENTATION)
    except Exception:  # as above
        return None
    return value if value in UPRIGHT else None


def check_png(content):
    """Return the EXIF bytes of a PNG that is whole and of a sane size, empty where it has none; else None."""
    view, position, kind, has_pixels, exif = memoryview(content), len(PNG_SIGNATURE), None, False, b""
    while kind != b"IEND":
        head = content[position : position + 8]
        if len(head) < 8:
            return None
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = position + 8 + length
        if int.from_bytes(view[end : end + 4], "big") != zlib.crc32(view[position + 4 : end]):
            return None
        if position == len(PNG_SIGNATURE):
            width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
            if (kind, length) != (b"IHDR", 13) or not 0 < width * height <= MAX_PIXELS:
                return None
        exif = content[position + 8 : end] if kind == b"eXIf" else exif
        has_pixels = has_pixels or kind == b"IDAT"
        position = end + 4
    return exif if has_pixels else None
