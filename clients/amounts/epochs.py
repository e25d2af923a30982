"""Passes over a client's rows: who has more rows takes more steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.clients.local_work import LocalWork

from fedpeft.parts import setting


@dataclass(frozen=True)
class Epochs(LocalWork):
    """Passes over a client's rows."""

    passes: float = setting(
        1.0, "over the client's rows in a round; a fraction trains on a part", above=0, high=1_000_000
    )

    argument: ClassVar[str] = "passes"

    def steps_for(self, rows: int, batch_size: int) -> int:
        """As many as the passes need, at least 1."""
        return max(1, round(self.passes * -(-rows // batch_size)))


part = Epochs
