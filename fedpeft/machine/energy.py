"""Energy that this machine has used, in joules: its processors by RAPL, its NVIDIA GPUs by NVML, if available.

RAPL counts the energy of a processor's package in microjoules, and that of memory separately. Its counter restarts at a
limit; no restart is missed if the counter is read at least every few minutes. Both count everything that runs on the
machine. NVML is read through nvidia-ml-py if that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass
class Counter:
    """One energy counter.

    Attributes:
        name: what it counts.
        read: returns its value in joules.
        turn: joules at which it restarts; 0: never.
    """

    name: str
    read: Callable[[], float]
    turn: float = 0.0
    _last: float = 0.0
    _total: float = 0.0

    def __post_init__(self) -> None:
        """Take the first reading."""
        self._last = self.read()

    def measure_joules(self) -> float:
        """Return the joules since this counter was created."""
        now = self.read()
        step = now - self._last
        if step < 0:
            step = step + self.turn if self.turn else 0.0
        self._total += step
        self._last = now
        return self._total


def find_rapl_counters(folder: Path = POWERCAP) -> list[Counter]:
    """Return the counters of processor packages and of memory; empty if they can't be read.

    A counter of the whole platform includes the others, so it is used only if there are no others.
    """
    found: dict[str, Counter] = {}
    for zone in sorted(folder.glob("*-rapl:*")) if folder.is_dir() else ():
        try:
            name = (zone / "name").read_text().strip()
            if zone.name.count(":") > 1 and name != "dram":
                continue  # cores and graphics are part of their package
            turn = int((zone / "max_energy_range_uj").read_text()) / 1e6
            file = zone / "energy_uj"
            found[zone.name] = Counter(name, lambda file=file: int(file.read_text()) / 1e6, turn)  # type: ignore[misc]
        except (OSError, ValueError):  # only root can read it, or a container hides it
            continue
    parts = [counter for counter in found.values() if counter.name != "psys"]
    return parts or list(found.values())


def find_nvml_counters() -> list[Counter]:
    """Return the GPUs' counters; empty without GPUs or nvidia-ml-py, or on GPUs before Volta, which have none."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [
            Counter(f"gpu {i}", lambda h=handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3)  # type: ignore[misc]
            for i, handle in enumerate(handles)
        ]
    except pynvml.NVMLError:
        return []


@dataclass
class Meter:
    """Energy meter of this machine; without counters it measures nothing."""

    counters: list[Counter] = field(default_factory=lambda: [*find_rapl_counters(), *find_nvml_counters()])

    def measure_joules(self) -> float | None:
        """Return the joules since this meter was created, or None if there is no counter."""
        if not self.counters:
            return None
        try:
            return sum(counter.measure_joules() for counter in self.counters)
        except (OSError, ValueError):
            return None
