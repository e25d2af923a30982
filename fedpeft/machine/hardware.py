"""The machine: its cores, its GPUs, its arithmetic and its free memory, containers' limits included."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

T = TypeVar("T")

CGROUP = Path("/sys/fs/cgroup")


def has_fast_bf16(device: str) -> bool:
    """Whether "cpu", "cuda" or "cuda:N" has bf16 arithmetic of its own.

    A CPU without it (AVX2 only) converts number by number, at a ninth of its speed in fp32.
    """
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def list_accelerators() -> list[str]:
    """The GPUs that torch can use here: "cuda:0", "cuda:1", ...; `CUDA_VISIBLE_DEVICES` narrows them, empty to none."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def divide_gpus(jobs: int) -> list[str]:
    """Values of `CUDA_VISIBLE_DEVICES` that divide the GPUs among `jobs` processes; none where there are no GPUs."""
    count = len(list_accelerators())
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")[:count]
    each = max(1, count // jobs)
    return [",".join(visible[i : i + each]) for i in range(0, count - each + 1, each)]


def get_gpu_name(device: str) -> str:
    """The model of a GPU, as its driver calls it; `device` itself where it is not of this machine."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") and list_accelerators() else device


def count_usable_cores() -> int:
    """Cores for worker processes: those of the machine, less what this process, or its container, may not use."""
    found = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = min(found, len(os.sched_getaffinity(0)))
    return max(1, min(found, count_container_cores(CGROUP)))


def count_container_cores(folder: Path) -> int:
    """Cores that a container (cgroup 2) may use, rounded up; a huge number where there is no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit
        return 1 << 30


def map_in_threads(threads: int, work: Callable[..., T], *each: Sequence[Any]) -> list[T]:
    """`work` on the first of `each`, on the second, and so on, as `map` does; by so many threads, one: by this one.

    A GPU's worker has cores to itself, and encodes its clients' updates on them.
    """
    if threads == 1 or len(each[0]) < 2:
        return list(map(work, *each))
    with ThreadPoolExecutor(min(threads, len(each[0]))) as pool:
        return list(pool.map(work, *each))


def get_free_memory(device: str) -> int:
    """Bytes that are free on "cpu" (of the machine, or of its container if that is less), "cuda" or "cuda:N"."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), get_container_memory(CGROUP))


def get_container_memory(folder: Path) -> int:
    """Bytes that a container (cgroup 2) may still take; a huge number where there is no limit."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    if limit == "max":
        return 1 << 62
    return max(0, int(limit) - int(used) + int(cache.get("inactive_file", 0)))
