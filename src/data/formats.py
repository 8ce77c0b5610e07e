"""Image files as bytes: find their defects, and convert them to bytes that MindSpore's decoder reads correctly.

MindSpore's decoder (2.7.0, measured) ends the process on many damaged JPEGs and does not support WebP. So it gets only
valid JPEG and PNG files unchanged. Pillow decodes all other files. The decoder also ignores the EXIF orientation, so
`upright` turns the image after it is decoded and made small.
"""

import errno
import functools
import io
import os
import re
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

import numpy as np
from mindspore.dataset import vision
from PIL import Image

from src.data.jpeg import MAX_PIXELS, check_jpeg

FORMATS = ("JPEG", "PNG", "BMP", "WebP", "TIFF")
# A file with one of these extensions is meant to be an image. Another file is an image if its first bytes say so.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".heic", ".avif")
NOT_REGULAR = "is not a regular file"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # the EXIF tag; TURNS maps each of its values, except 1, to the way to turn the image upright
UPRIGHT = 1
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image cannot be decoded; the message gives the reason, without the file's name."""


def format_of(head: bytes) -> Optional[str]:
    """Return which of FORMATS a file has, by its first 12 bytes, or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(PNG_SIGNATURE):
        return "PNG"
    if head.startswith(b"BM") and head[6:10] == bytes(4):  # a text may begin with BM
        return "BMP"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return "TIFF" if head[:4] in (b"II*\0", b"MM\0*") else None


def open_file(path: Union[str, Path]) -> BinaryIO:
    """Open an image file, without a buffer.

    Raise an `OSError` if it is not a regular file: opening a FIFO in the usual way waits for a process that writes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    return open(descriptor, "rb", buffering=0)


def read_file(path: Union[str, Path]) -> bytes:
    """Return the content of an image file; raise an `OSError` as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def examine(path: str) -> tuple[bool, Optional[str]]:
    """Return (whether a file is meant to be an image, its defect or None).

    A file is meant to be an image if its first bytes or its extension say so. Hidden files are not images. A file is
    decoded only if its end looks truncated.
    """
    if os.path.basename(path).startswith("."):
        return False, None
    has_image_suffix = os.path.splitext(path)[1].lower() in SUFFIXES
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(12)
            if not has_image_suffix and format_of(head) is None:
                return False, None
            if not has_end(file, head, size):
                file.seek(0)
                decodable(file.read())
    except OSError as error:
        return True, f"{path}: {error.strerror}"
    except ImageError as problem:
        return True, f"{path}: {problem}"
    return True, None


def has_end(file: BinaryIO, head: bytes, size: int) -> bool:
    """Return whether an open file has the end that its format requires; False if the format is not known.

    `head` is the first 12 bytes and `size` the number of bytes. A truncated file lacks its end.
    """
    kind = format_of(head)
    if kind in ("JPEG", "PNG"):
        file.seek(max(0, size - 64))
        return (b"\xff\xd9" if kind == "JPEG" else b"IEND") in file.read(64)
    if kind in ("BMP", "WebP") and len(head) == 12:
        start, extra = (2, 0) if kind == "BMP" else (4, 8)
        return size >= int.from_bytes(head[start : start + 4], "little") + extra > 12
    return False


def decodable(content: bytes) -> tuple[bytes, int]:
    """Return (bytes, orientation) of an image file's `content`.

    MindSpore's decoder turns the bytes into an RGB image, and `upright` turns this image by the orientation, a value of
    the EXIF tag from 1 to 8. Gray becomes RGB, transparency is dropped, 16 bits become 8. Raise an `ImageError` if the
    image cannot be decoded.
    """
    if not content:
        raise ImageError("is empty")
    kind = format_of(content[:12])
    exif = None
    if kind == "JPEG":
        exif = check_jpeg(content)
    elif kind == "PNG":
        exif = check_png(content)
    if exif is not None:
        return content, orientation_of(exif)
    return bitmap(content), UPRIGHT


def bitmap(content: bytes) -> bytes:
    """Return an image file's `content`, decoded by Pillow, as a BMP of the upright RGB image."""
    written = io.BytesIO()
    decode(content).save(written, "BMP")
    return written.getvalue()


def decode(content: bytes) -> Image.Image:
    """Return the upright RGB image of an image file's `content`; raise an `ImageError` if it cannot be decoded."""
    kind = format_of(content[:12])
    try:
        with Image.open(io.BytesIO(content)) as file:
            if kind is None:
                raise ImageError(f"has an unsupported format (found {file.format}, expected {', '.join(FORMATS)})")
            file.load()
            orientation = orientation_of(file.info.get("exif")) if kind != "TIFF" else UPRIGHT
            image = file if orientation == UPRIGHT else file.transpose(TURNS[orientation])
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ImageError("has an unsupported pixel type (found 32 bits, expected 8 or 16)")
            return image.convert("RGB")
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("is not an image" if kind is None else f"is a damaged {kind} image") from None
    except Image.DecompressionBombError as error:
        found = re.sub(r"\D*(\d+).*", r"\1", str(error))  # Pillow's message begins with the number of pixels
        raise ImageError(
            f"has too many pixels (found {found}, expected at most {MAX_PIXELS}); make it smaller"
        ) from None
    except Exception as error:  # Pillow raises many types of exception on damaged files.
        raise ImageError(f"is a damaged image: {error}") from None


def upright(image: np.ndarray, orientation: Union[int, np.ndarray]) -> np.ndarray:
    """Return a decoded image, (H, W) or (H, W, C), turned upright by its EXIF orientation, a number from 1 to 8.

    The definition of the numbers is in the EXIF standard (CIPA DC-008, tag 274): the side of the scene that the first
    row and the first column show.
    """
    value = int(orientation)
    if value == UPRIGHT:
        return image
    if value >= 5:  # The first row is a side of the scene.
        image = image.swapaxes(0, 1)
    if value in (3, 4, 7, 8):
        image = image[::-1]
    if value in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def size_of(content: bytes, orientation: int) -> tuple[int, int]:
    """Return (width, height) in pixels of the upright image; the arguments are what `decodable` returned."""
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    return (height, width) if orientation >= 5 else (width, height)


def stand_in(content: bytes) -> np.ndarray:
    """Return the bytes, uint8 (number of bytes), of a gray image as large as the image that `decodable` returned.

    A resumed epoch feeds it in place of an image that nobody sees, because it is decoded in less time. The random
    operators then draw what they would draw for the image: their draws depend on its size, and on nothing else in it.
    If the size cannot be read, the image itself is returned.
    """
    try:
        return gray_jpeg(size_of(content, UPRIGHT))
    except Exception:  # Pillow raises many types of exception, and a JPEG has at most 65,500 pixels on a side.
        return np.frombuffer(content, np.uint8)


@functools.lru_cache(maxsize=64)
def gray_jpeg(size: tuple[int, int]) -> np.ndarray:
    """Return the bytes, uint8 (number of bytes), of a gray JPEG; `size` is its width and height in pixels."""
    written = io.BytesIO()
    Image.new("L", size).save(written, "JPEG")
    return np.frombuffer(written.getvalue(), np.uint8)


def decoder_takes(content: bytes, operations: Sequence[Any] = ()) -> bool:
    """Return whether MindSpore's decoder, and further `operations`, accept the bytes that `decodable` returned."""
    encoded = np.frombuffer(content, np.uint8)
    try:
        for operation in (vision.Decode(), *operations):
            operation(encoded)
    except RuntimeError:
        remove_abnormal_images()
        return False
    return True


def remove_abnormal_images() -> None:
    """Remove the copies of bad images that MindSpore's decoder writes into the working folder."""
    for copy in Path().glob("abnormal_image.*"):
        copy.unlink(missing_ok=True)


def reason_of(error: Exception) -> str:
    """Return the line of MindSpore's error message that gives the reason."""
    message = str(error)
    reason = next((line for line in message.splitlines() if "[ERROR]" in line), message)
    return reason.replace("[ERROR]", "").strip()


def orientation_of(exif: Optional[bytes]) -> int:
    """Return the orientation in EXIF bytes, from 1 to 8; UPRIGHT if the bytes have no orientation or are damaged."""
    if not exif:
        return UPRIGHT
    found = Image.Exif()
    try:
        found.load(exif)
        value = found.get(ORIENTATION)
    except Exception:  # Pillow raises many types of exception on damaged EXIF bytes too.
        return UPRIGHT
    return value if value in TURNS else UPRIGHT


def check_png(content: bytes) -> Optional[bytes]:
    """Return the EXIF bytes of a valid PNG, empty if it has no EXIF; return None for any other PNG.

    Valid: all chunks are complete, have the right checksum and an image of 1 to MAX_PIXELS pixels.
    """
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
