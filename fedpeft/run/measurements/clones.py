"""Clones: whether a function is still known when its names are changed and its statements reordered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.parts import setting
from fedpeft.run.measurement import Measurement


@dataclass(frozen=True)
class Clones(Measurement):
    """Functions of the test rows that look for their clones among those of all (`fedpeft.data.code_clones`)."""

    rows: int = setting(300, "test examples that are looked at, always the same", low=2)

    simulated: ClassVar[bool] = True


part = Clones
