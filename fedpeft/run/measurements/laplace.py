"""Laplace: how uncertain the adapter itself is, from Kronecker factors that clients add up in one exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.parts import setting
from fedpeft.run.measurement import Measurement


@dataclass(frozen=True)
class Laplace(Measurement):
    """The finished classifier's calibration under Laplace-LoRA (`fedpeft.trust.kronecker`)."""

    rank: int = setting(10, "directions of the large Kronecker factor that are kept", low=1, high=4096)
    rows: int = setting(400, "test examples that are predicted, always the same; each takes a pass per class", low=1)

    simulated: ClassVar[bool] = True


part = Laplace
