"""The syntax of JPEG files (ITU T.81, annex B): check everything that a decoder relies on, except the coded pixels."""

import re
from typing import Optional

MAX_PIXELS = 2 * 89_478_485  # Pillow's limit: a larger size means an attack or a damaged header
SOF, DHT, EOI, SOS, DQT, DRI, APP1, COM = (0xC0, 0xC1, 0xC2), 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xFE
PROGRESSIVE = 0xC2
APPLICATION = range(0xE0, 0xF0)
# A marker ends the coded data. Inside coded data, FF 00 is a byte and FF D0 to FF D7 are restarts.
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def check_jpeg(content: bytes) -> Optional[bytes]:
    """Return the EXIF bytes of a valid JPEG, empty if it has no EXIF; return None for any other JPEG.

    Valid: complete, all segments and tables correct, Huffman-coded, baseline, extended or progressive, 8 bits, gray or
    three components. Errors in the coded pixels are not found, because they decode to an image too.
    """
    position, scans, exif = 2, 0, b""
    tables: set[tuple[str, int]] = set()
    frame: Optional[bytes] = None
    while content[position : position + 2] != bytes((0xFF, EOI)):
        if position + 4 > len(content) or content[position] != 0xFF:
            return None
        marker, end = content[position + 1], position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        body = content[position + 4 : end]
        if not position + 4 <= end <= len(content):
            return None
        if marker in SOF and frame is None and is_frame(body):
            frame, progressive = body, marker == PROGRESSIVE
        elif marker in (DHT, DQT):
            found = huffman_tables(body) if marker == DHT else quantization_tables(body)
            if not found:
                return None
            tables |= found
        elif marker == SOS and frame is not None and is_scan(body, frame, progressive, tables):
            scans += 1
            following = MARKER.search(content, end)
            end = following.start() if following else len(content)
        elif marker == APP1:
            exif = exif or (body if body.startswith(b"Exif\0\0") else b"")
        elif marker not in APPLICATION and marker != COM and (marker, len(body)) != (DRI, 2):
            return None
        position = end
    return exif if scans else None


def huffman_tables(body: bytes) -> set[tuple[str, int]]:
    """Return the names, such as ("ac", 0), of the tables in a DHT segment; empty if a table is invalid (B.2.4.2)."""
    names, position = set(), 0
    while position < len(body):
        kind, index, counts = body[position] >> 4, body[position] & 15, body[position + 1 : position + 17]
        symbols = body[position + 17 : position + 17 + sum(counts)]
        if kind > 1 or index > 3 or len(counts) < 16 or len(symbols) < sum(counts) or sum(counts) > 256:
            return set()
        # The codes of a length continue after the shorter codes (C.2), and must fit into this number of bits.
        code = 0
        for length, count in enumerate(counts, 1):
            code = 2 * code + count
            if code > 1 << length:
                return set()
        if kind == 0 and max(symbols, default=0) > 15:
            return set()
        names.add(("ac" if kind else "dc", index))
        position += 17 + len(symbols)
    return names


def quantization_tables(body: bytes) -> set[tuple[str, int]]:
    """Return the names, such as ("quantization", 0), of the tables in a DQT segment; empty if a table is invalid."""
    names, position = set(), 0
    while position < len(body):
        wide, index = body[position] >> 4, body[position] & 15
        position += 129 if wide else 65
        if wide > 1 or index > 3 or position > len(body):
            return set()
        names.add(("quantization", index))
    return names


def components_of(frame: bytes) -> list[tuple[int, int, int, int]]:
    """Return (identifier, horizontal sampling, vertical sampling, quantization table) of a frame's components."""
    return [(frame[i], frame[i + 1] >> 4, frame[i + 1] & 15, frame[i + 2]) for i in range(6, len(frame), 3)]


def is_frame(body: bytes) -> bool:
    """Return whether a SOF segment is supported.

    That is: 8 bits, gray or three components, 1 to MAX_PIXELS pixels, and a usual chroma subsampling.
    """
    if len(body) not in (9, 15) or body[0] != 8 or len(body) != 6 + 3 * body[5]:
        return False
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    (_, across, down, _), *others = components = components_of(body)
    return (
        0 < height * width <= MAX_PIXELS
        and {across, down} <= {1, 2, 4}
        and across * down <= 8
        and all(other[1:3] == (1, 1) for other in others)
        and len({component[0] for component in components}) == len(components)
    )


def is_scan(body: bytes, frame: bytes, progressive: bool, tables: set[tuple[str, int]]) -> bool:
    """Return whether a SOS segment fits the frame, and all tables that its components need are there (B.2.3)."""
    count = body[0] if body else 0
    if not count or len(body) != 4 + 2 * count:
        return False
    quantization = {identifier: ("quantization", table) for identifier, _, _, table in components_of(frame)}
    first, last, high, low = body[-3], body[-2], body[-1] >> 4, body[-1] & 15
    if progressive:
        spectral = last == 0 if first == 0 else count == 1 and first <= last <= 63
        if not spectral or low > 13 or high not in (0, low + 1):
            return False
    elif (first, last, high, low) != (0, 63, 0, 0):
        return False
    for i in range(1, 1 + 2 * count, 2):
        identifier, dc, ac = body[i], body[i + 1] >> 4, body[i + 1] & 15
        needed = {quantization.pop(identifier, None)}
        if first == 0 and high == 0:
            needed.add(("dc", dc))
        if last > 0:
            needed.add(("ac", ac))
        if not needed <= tables:
            return False
    return True
