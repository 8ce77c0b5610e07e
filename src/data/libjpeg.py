"""The JPEG decoder of MindSpore's image operators."""

import ctypes
import importlib
from pathlib import Path


def share_libjpeg():
    """Let MindSpore's operators decode with the libjpeg-turbo that Pillow brings; of use before MindSpore is imported.

    MindSpore's own copy (2.7.0 to 2.10.0) was built without vector instructions, Pillow's with them: the same pixels in
    two thirds of the time. Its functions are found by name, and so where all can see them first. Where Pillow has
    another libjpeg, or the system is not Linux, MindSpore goes on with its own.
    """
    importlib.import_module("PIL._imaging")
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for path in {line.split(maxsplit=5)[-1] for line in mapped}:
        name = path.rpartition("/")[2]
        # 62 is the binary interface of both; cropping is what libjpeg-turbo has and the older libjpeg 6b lacks.
        if name.startswith("libjpeg") and ".so.62" in name and hasattr(ctypes.CDLL(path), "jpeg_crop_scanline"):
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
