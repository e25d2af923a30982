"""Cores of the machine, within the limits of a container.

The module does not import torch, so commands can count cores before they load it.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def count_usable_cores() -> int:
    """Return the number of cores that this process, or its container, may use."""
    found = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = min(found, len(os.sched_getaffinity(0)))
    return max(1, min(found, count_container_cores(CGROUP)))


def count_allowed_threads() -> int:
    """Return the limit on torch's threads that the environment variable `OMP_NUM_THREADS` sets; 0 without a limit.

    More threads than free cores wait for each other, so a user on a busy machine sets it.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def count_container_cores(folder: Path) -> int:
    """Return the number of cores that a container (cgroup 2) may use, rounded up; huge without a limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit
        return 1 << 30
