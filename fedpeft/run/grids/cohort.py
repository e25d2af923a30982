"""Processes of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.run.grid import SimulationGrid


@dataclass(frozen=True, kw_only=True)
class Cohort(SimulationGrid):
    """Worker processes of this machine."""


part = Cohort
