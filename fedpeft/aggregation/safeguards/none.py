"""Every step counts, and nothing is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.safeguard import Safeguard, SafeguardState


@dataclass(frozen=True)
class Unguarded(Safeguard):
    """Every step counts."""

    watches: ClassVar[bool] = False

    def judge(self, loss: float, standing: SafeguardState) -> tuple[bool, SafeguardState]:
        """It counts."""
        return True, standing


part = Unguarded
