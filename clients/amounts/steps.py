"""Steps of the local optimizer: the same number at each client, however many examples it has."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.clients.local_work import LocalWork

from fedpeft.parts import setting


@dataclass(frozen=True)
class Steps(LocalWork):
    """Local work as a number of optimizer steps."""

    count: int = setting(dataclasses.MISSING, "steps per round", low=1, high=1_000_000)

    walk: bool = setting(True, "continue where the last round stopped; False: each round reshuffles the examples")

    argument: ClassVar[str] = "count"

    def steps_for(self, rows: int, batch_size: int) -> int:
        """Return `count`, whatever the number of examples."""
        return self.count

    def continues_walk(self) -> bool:
        """Return the setting `walk`."""
        return self.walk


part = Steps
