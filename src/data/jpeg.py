"""The syntax of JPEG files (ITU T.81, annex B): what a decoder may rely on before it gets to the pixels."""

import re

MAX_PIXELS = 2 * 89_478_485  # Pillow's own limit: what claims more is an attack or a damaged header
SOF, DHT, EOI, SOS, DQT, DRI, APP1, COM = (0xC0, 0xC1, 0xC2), 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xFE
PROGRESSIVE = 0xC2
APPLICATION = range(0xE0, 0xF0)
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in coded data; FF 00 is a coded byte, FF D0 to D7 restart it


def check_jpeg(content):
    """Return a sound JPEG's EXIF bytes, empty where it has none, and None for any JPEG that is not certainly sound.

    Sound: whole, with all segments and tables valid, Huffman-coded baseline, extended or progressive with 8 bits, gray
    or of three components. Errors in the coded pixels themselves no decoder can tell from a picture.
    """
    position, tables, frame, scans, exif = 2, set(), None, 0, b""
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


def huffman_tables(body):
    """Return the names, such as ("ac", 0), of the valid tables in a DHT segment; empty if one is not (B.2.4.2)."""
    names, position = set(), 0
    while position < len(body):
        kind, index, counts = body[position] >> 4, body[position] & 15, body[position + 1 : position + 17]
        symbols = body[position + 17 : position + 17 + sum(counts)]
        if kind > 1 or index > 3 or len(counts) < 16 or len(symbols) < sum(counts) or sum(counts) > 256:
            return set()
        # Codes of each length follow those of the length before (C.2), and must not outgrow it.
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


def quantization_tables(body):
    """Return the names, such as ("quantization", 0), of the tables in a DQT segment; empty if one is not valid."""
    names, position = set(), 0
    while position < len(body):
        wide, index = body[position] >> 4, body[position] & 15
        position += 129 if wide else 65
        if wide > 1 or index > 3 or position > len(body):
            return set()
        names.add(("quantization", index))
    return names


def components_of(frame):
    """Return (identifier, horizontal sampling, vertical sampling, quantization table) of a frame's components."""
    return [(frame[i], frame[i + 1] >> 4, frame[i + 1] & 15, frame[i + 2]) for i in range(6, len(frame), 3)]


def is_frame(body):
    """Tell whether a SOF segment says: 8 bits, gray or three components, of a sane size and a usual sampling."""
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


def is_scan(body, frame, progressive, tables):
    """Tell whether a SOS segment fits the frame and has the tables that its components need (B.2.3)."""
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
