"""Actors of a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.parts import setting
from fedpeft.wiring.grid import SimulationGrid


@dataclass(frozen=True, kw_only=True)
class Ray(SimulationGrid):
    """Actors of a Ray cluster."""

    address: str = setting("", "a running cluster, 'HOST:PORT' or auto; empty: start one here")

    @property
    def cluster(self) -> str | None:
        """The address."""
        return self.address


part = Ray
