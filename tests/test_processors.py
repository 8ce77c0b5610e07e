"""The processors that a process may use, by its affinity and by the quotas of containers."""

import builtins
import io
import os

import pytest

from src.processors import usable

GROUPS = "/sys/fs/cgroup/"


@pytest.fixture
def machine(monkeypatch):
    """Pretend a machine of 64 processors; the arguments are the process's affinity and the files of its cgroup."""
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    real_open, real_exists = builtins.open, os.path.exists

    def pretend(affinity, files):
        def open_pretended(path, *arguments, **options):
            if str(path).startswith(GROUPS):
                return io.StringIO(files[str(path).removeprefix(GROUPS)])
            return real_open(path, *arguments, **options)

        def exists(path):
            return str(path).removeprefix(GROUPS) in files if str(path).startswith(GROUPS) else real_exists(path)

        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
        monkeypatch.setattr(os.path, "exists", exists)
        monkeypatch.setattr(builtins, "open", open_pretended)

    return pretend


@pytest.mark.parametrize(
    ("affinity", "files", "expected"),
    [
        (64, {}, 64),
        (5, {}, 5),
        # https://docs.kernel.org/admin-guide/cgroup-v2.html, cpu.max: quota and period in microseconds
        (64, {"cpu.max": "300000 100000\n"}, 3),
        (64, {"cpu.max": "150000 100000\n"}, 2),
        (2, {"cpu.max": "300000 100000\n"}, 2),
        (6, {"cpu.max": "max 100000\n"}, 6),
        # https://docs.kernel.org/scheduler/sched-bwc.html; -1 is no quota
        (64, {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        (7, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 7),
    ],
)
def test_affinity_and_quota_limit_the_processors(machine, affinity, files, expected):
    machine(affinity, files)
    assert usable() == expected


def test_the_affinity_of_this_process_counts():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable() == 1
    finally:
        os.sched_setaffinity(0, before)
