"""Speed up the JPEG decoder of MindSpore's image operators."""

import ctypes
import importlib
from pathlib import Path


def share_libjpeg() -> None:
    """Let MindSpore's operators decode JPEGs with Pillow's libjpeg-turbo; call it before MindSpore is imported.

    MindSpore's copy of the library (2.7.0 to 2.10.0) was built without vector instructions, Pillow's copy with them: it
    gives the same pixels in two thirds of the time. The dynamic linker looks up functions by name, first in the
    libraries that are visible to the whole process. So this function makes Pillow's copy visible. If Pillow has another
    libjpeg, or the system is not Linux, MindSpore uses its copy.
    """
    importlib.import_module("PIL._imaging")
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for path in {line.split(maxsplit=5)[-1] for line in mapped}:
        name = path.rpartition("/")[2]
        # Both copies have binary interface 62. Only libjpeg-turbo can crop; the older libjpeg 6b cannot.
        if name.startswith("libjpeg") and ".so.62" in name and hasattr(ctypes.CDLL(path), "jpeg_crop_scanline"):
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
