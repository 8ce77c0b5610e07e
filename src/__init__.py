"""PocketSpore: train, evaluate and ship pocket-size CNNs with MindSpore."""

import importlib.util
import logging
import os
import sys

from src import script

# The scripts of these folders import this package first. From then on, a signal ends them with one line.
ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
main_file = getattr(sys.modules["__main__"], "__file__", None)
if main_file and os.path.dirname(os.path.realpath(main_file)) in (ROOT, f"{ROOT}/tools", f"{ROOT}/benchmarks"):
    script.begin()

from src.data.libjpeg import share_libjpeg  # noqa: E402

__version__ = "0.2.0"

if not (3, 9) <= sys.version_info[:2] <= (3, 12):
    # requirements.txt installs nothing on such a Python. So this is the last line that the README's command prints.
    sys.stderr.write(
        "error: Python {}.{} is not supported: MindSpore has wheels for Python 3.9, 3.10, 3.11 and 3.12\n".format(
            *sys.version_info[:2]
        )
    )
    sys.exit(2)

if importlib.util.find_spec("mindspore") is None:
    sys.stderr.write(f"error: MindSpore is not installed in {sys.prefix}; run: pip install -r requirements.txt\n")
    sys.exit(2)

# MindSpore reads its log level only at import. Level 4 hides the warnings of its C++ code from the user.
os.environ.setdefault("GLOG_v", "4")

# The XDG Base Directory Specification says that a relative cache folder is ignored, but Matplotlib would make it in the
# working folder. Matplotlib also reports a cache folder that it cannot use, although it works without the folder.
if not os.path.isabs(os.environ.get("XDG_CACHE_HOME", "/")):
    del os.environ["XDG_CACHE_HOME"]
logging.getLogger("matplotlib").setLevel(logging.ERROR)

share_libjpeg()
