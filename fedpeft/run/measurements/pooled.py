"""The reference without federation: the same adapter trained on all clients' rows together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.run.measurement import Measurement


@dataclass(frozen=True)
class Pooled(Measurement):
    """The same adapter, also trained on the pooled rows, for comparison."""

    simulated: ClassVar[bool] = True


part = Pooled
