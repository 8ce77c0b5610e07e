"""The versions that checkpoints and exported files record."""

import platform

from src import __version__


def versions() -> dict[str, str]:
    """Return the version of PocketSpore, and the versions of the software that it runs on."""
    import mindspore  # imported here because it takes seconds, and reading a description does not need it
    import numpy

    return {
        "pocketspore": __version__,
        "mindspore": mindspore.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }
