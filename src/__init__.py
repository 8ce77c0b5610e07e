"""PocketSpore: train, evaluate and ship pocket-size CNNs with MindSpore."""

import importlib.util
import logging
import os
import sys
import warnings

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
_level = os.environ.setdefault("GLOG_v", "4")
if _level not in ("0", "1", "2", "3", "4"):
    sys.stderr.write(f"error: GLOG_v: must be a whole number from 0 to 4 (found {_level}); unset this variable\n")
    sys.exit(2)
# When a compilation fails or is interrupted, MindSpore writes a record for its developers into the folder rank_0 of the
# working folder. In /dev/null, MindSpore cannot make that folder, and goes on without the record.
os.environ.setdefault("MS_OM_PATH", os.devnull)
# matplotlib cannot be imported if MPLBACKEND has a value that it does not know. Our figures need no display.
os.environ["MPLBACKEND"] = "agg"
# Pillow warns of photos above 89 million pixels, and refuses above twice as many. The refusal is an error of ours.
warnings.filterwarnings("ignore", "Image size .* exceeds limit of .* pixels, could be decompression bomb")

# The XDG Base Directory Specification says that a relative cache folder is ignored, but Matplotlib would make it in the
# working folder. Matplotlib also reports a cache folder that it cannot use, although it works without the folder.
if not os.path.isabs(os.environ.get("XDG_CACHE_HOME", "/")):
    del os.environ["XDG_CACHE_HOME"]
logging.getLogger("matplotlib").setLevel(logging.ERROR)

share_libjpeg()
