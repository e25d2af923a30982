"""Passes over a client's examples: a client with more examples takes more steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.clients.local_work import LocalWork

from fedpeft.parts import setting


@dataclass(frozen=True)
class Epochs(LocalWork):
    """Local work as a number of passes over the client's examples."""

    passes: float = setting(
        1.0, "passes over the client's examples in a round; a fraction uses part of them", above=0, high=1_000_000
    )

    argument: ClassVar[str] = "passes"

    def steps_for(self, rows: int, batch_size: int) -> int:
        """Return the steps that `passes` passes over `rows` examples need, at least 1."""
        return max(1, round(self.passes * -(-rows // batch_size)))


part = Epochs
