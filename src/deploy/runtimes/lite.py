"""Find MindSpore Lite on this machine, and use it in a separate process."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Optional, Union

from src.deploy.runtimes.process import RuntimeProcess
from src.errors import UserError
from src.files import cache_folder

HOW_TO_GET = "run tools/setup_lite.sh (needs a Python 3.7), or name a Python that has mindspore_lite with --lite-python"
PROBE_TIMEOUT = 60.0  # seconds that a Python may take to say whether it has MindSpore Lite


def find_lite(named: Optional[str] = None) -> Optional[str]:
    """Return the path of a Python that has MindSpore Lite, or None if no such Python is found.

    The `named` Python is used if given; without MindSpore Lite it is a `UserError`. Otherwise this process's Python is
    tried, and then the Python that tools/setup_lite.sh installs.
    """
    if named is not None:
        if not has_lite(named):
            raise UserError(f"--lite-python {named}: is not a Python that has mindspore_lite")
        return named
    candidates = [sys.executable]
    with contextlib.suppress(RuntimeError):  # the user has no home folder
        candidates.append(str(cache_folder() / "lite" / "bin" / "python"))
    return next((python for python in candidates if has_lite(python)), None)


def has_lite(python: str) -> bool:
    """Return whether the Python at the path `python` can import MindSpore Lite."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('mindspore_lite') is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, timeout=PROBE_TIMEOUT).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def need_lite(named: Optional[str] = None) -> str:
    """Return the path of a Python that has MindSpore Lite; without such a Python, raise a `UserError`."""
    python = find_lite(named)
    if python is None:
        raise UserError(f"MindSpore Lite was not found; {HOW_TO_GET}")
    return python


class Lite(RuntimeProcess):
    """A process with MindSpore Lite, which also has Lite's converter."""

    def __init__(self, python: str) -> None:
        super().__init__("MindSpore Lite", "mindspore_lite", python)

    def convert(
        self,
        source: Union[str, Path],
        target: Union[str, Path],
        weight_fp16: bool = False,
        config: Optional[dict[str, dict[str, str]]] = None,
    ) -> None:
        """Convert a MindIR file to `target`, whose name ends with .ms; `config` is {section: {key: value}}."""
        stem = str(Path(target).with_suffix(""))
        self.ask("convert", source=str(source), target=stem, weight_fp16=weight_fp16, config=config or {})
