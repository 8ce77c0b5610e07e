"""The versions that checkpoints and exported files record."""

import platform

from src import __version__


def versions() -> dict[str, str]:
    """Return the versions of PocketSpore and of the software that a file was made with."""
    import mindspore  # takes seconds, and reading a description of a file does not need it
    import numpy

    return {
        "pocketspore": __version__,
        "mindspore": mindspore.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }
