"""Processes of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.parts import setting
from fedpeft.wiring.grid import SimulationGrid


@dataclass(frozen=True, kw_only=True)
class Cohort(SimulationGrid):
    """Worker processes of this machine."""

    spread: bool = setting(
        False, "one worker, and the base's blocks dealt out to all GPUs: for a language model that does not fit one"
    )

    @property
    def spreads(self) -> bool:
        """Whether one base lies on all GPUs."""
        return self.spread


part = Cohort
