"""No safeguard: every step is accepted without a validation loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.safeguard import Safeguard, SafeguardState


@dataclass(frozen=True)
class Unguarded(Safeguard):
    """Acceptance of every step."""

    watches: ClassVar[bool] = False

    def judge(self, loss: float, standing: SafeguardState) -> tuple[bool, SafeguardState]:
        """Accept the state."""
        return True, standing


part = Unguarded
