"""This machine's processors: their name, and the number of them that this process may use."""

import platform
from pathlib import Path


def usable() -> int:
    """Return the number of processors that this process may use: by its CPU affinity and the quota of its container.

    A quota of 2.5 processors (cgroup v1 or v2) counts as 3. The environment variable LOKY_MAX_CPU_COUNT lowers the
    number.
    """
    import joblib  # imported here because it takes a tenth of a second

    return int(joblib.cpu_count())


def model_name() -> str:
    """Return the name of this machine's processor, such as `AMD EPYC 9R14`; without a name, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
