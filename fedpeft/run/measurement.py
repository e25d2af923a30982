"""What a measurement is: something that is found out about a run beside its end."""

from __future__ import annotations

from typing import ClassVar

from fedpeft.families import MEASUREMENTS as MEASUREMENTS
from fedpeft.parts import name_of


class Measurement:
    """One measurement. Subclasses are frozen dataclasses; their fields are the user's settings."""

    simulated: ClassVar[bool] = False
    """Whether it needs rows that only a simulation has."""

    @property
    def name(self) -> str:
        """As on the command line."""
        return name_of(type(self))
