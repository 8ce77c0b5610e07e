"""The number of processors that this process may use."""


def usable() -> int:
    """Return the number of processors that this process may use: by its CPU affinity and the quota of its container.

    A quota of 2.5 processors (cgroup v1 or v2) counts as 3. The environment variable LOKY_MAX_CPU_COUNT lowers the
    number.
    """
    import joblib  # imported here because it takes a tenth of a second

    return int(joblib.cpu_count())
