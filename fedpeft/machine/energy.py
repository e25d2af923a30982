"""What this machine has used, in joules, where it says so: its processors by RAPL, its NVIDIA cards by NVML.

RAPL counts the energy of a processor's package (and of memory, which it does not hold) in microjoules, and begins anew
at a limit; a counter that is read at least every few minutes is not missed by a turn. Both count all that runs on the
machine. NVML is read through nvidia-ml-py, where that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass
class Counter:
    """One counter of energy.

    Attributes:
        name: of what it counts.
        read: its joules now.
        turn: joules at which it begins anew; 0: never.
    """

    name: str
    read: Callable[[], float]
    turn: float = 0.0
    _last: float = 0.0
    _total: float = 0.0

    def __post_init__(self) -> None:
        self._last = self.read()

    def measure_joules(self) -> float:
        """Since it was made."""
        now = self.read()
        step = now - self._last
        self._total += step if step >= 0 else step + self.turn if self.turn else 0.0
        self._last = now
        return self._total


def find_rapl_counters(folder: Path = POWERCAP) -> list[Counter]:
    """The packages' counters, and those of memory beside them; none where nobody may read them.

    A domain of the whole platform holds the others, and is left out where there are any.
    """
    found: dict[str, Counter] = {}
    for zone in sorted(folder.glob("*-rapl:*")) if folder.is_dir() else ():
        try:
            name = (zone / "name").read_text().strip()
            if zone.name.count(":") > 1 and name != "dram":
                continue  # cores and graphics, which their package counts
            turn = int((zone / "max_energy_range_uj").read_text()) / 1e6
            file = zone / "energy_uj"
            found[zone.name] = Counter(name, lambda file=file: int(file.read_text()) / 1e6, turn)  # type: ignore[misc]
        except (OSError, ValueError):  # root alone may read it, or a container hides it
            continue
    parts = [counter for counter in found.values() if counter.name != "psys"]
    return parts or list(found.values())


def find_nvml_counters() -> list[Counter]:
    """The cards' counters; none without cards, without nvidia-ml-py, or on cards before Volta, which count nothing."""
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
    """Of this machine; it measures nothing where there are no counters."""

    counters: list[Counter] = field(default_factory=lambda: [*find_rapl_counters(), *find_nvml_counters()])

    def measure_joules(self) -> float | None:
        """Since it was made; None: nobody counts."""
        if not self.counters:
            return None
        try:
            return sum(counter.measure_joules() for counter in self.counters)
        except (OSError, ValueError):
            return None
