"""The reference without federation and without others' rows: each client alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.parts import setting
from fedpeft.run.measurement import Measurement


@dataclass(frozen=True)
class Alone(Measurement):
    """The same adapter, also trained by single clients on their own rows (`fedpeft.simulation.alone`)."""

    clients: int = setting(4, "how many, evenly from those with the fewest rows to those with the most", low=1)

    simulated: ClassVar[bool] = True


part = Alone
