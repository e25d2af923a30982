"""Hardware of the machine: cores, GPUs, arithmetic and free memory, within the limits of a container."""

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
    """Return whether "cpu", "cuda" or "cuda:N" has native bf16 arithmetic.

    A CPU without it (AVX2 only) converts each number, at a ninth of its fp32 speed.
    """
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def list_accelerators() -> list[str]:
    """Return the GPUs that torch can use: "cuda:0", "cuda:1", ...; `CUDA_VISIBLE_DEVICES` restricts them."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def divide_gpus(jobs: int) -> list[str]:
    """Return values of `CUDA_VISIBLE_DEVICES` that divide the GPUs among `jobs` processes; empty without GPUs."""
    count = len(list_accelerators())
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")[:count]
    each = max(1, count // jobs)
    return [",".join(visible[i : i + each]) for i in range(0, count - each + 1, each)]


def get_gpu_name(device: str) -> str:
    """Return the driver's name of a GPU; return `device` if it is not a GPU of this machine."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") and list_accelerators() else device


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


def map_in_threads(threads: int, work: Callable[..., T], *each: Sequence[Any]) -> list[T]:
    """Return the results of `work` on the entries of `each`, as `map` does, in up to `threads` threads.

    With one thread, the calling thread does the work. A worker with a GPU uses its cores to encode its clients'
    updates.
    """
    if threads == 1 or len(each[0]) < 2:
        return list(map(work, *each))
    with ThreadPoolExecutor(min(threads, len(each[0]))) as pool:
        return list(pool.map(work, *each))


def get_free_memory(device: str) -> int:
    """Return the free bytes of "cpu" (of the machine, or of its container if that is less), "cuda" or "cuda:N"."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), get_container_memory(CGROUP))


def get_container_memory(folder: Path) -> int:
    """Return the bytes that a container (cgroup 2) may still allocate; huge without a limit."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    if limit == "max":
        return 1 << 62
    return max(0, int(limit) - int(used) + int(cache.get("inactive_file", 0)))
