"""Steps of the local optimizer: as many at each client, however many rows it has."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.clients.local_work import LocalWork

from fedpeft.parts import setting


@dataclass(frozen=True)
class Steps(LocalWork):
    """Steps of the local optimizer."""

    count: int = setting(dataclasses.MISSING, "steps of a round", low=1, high=1_000_000)

    walk: bool = setting(True, "continue where the last round stopped; False: each round draws its rows anew")

    argument: ClassVar[str] = "count"

    @property
    def walks(self) -> bool:
        """As it is set."""
        return self.walk

    @property
    def walks_by_steps(self) -> bool:
        """As it is set."""
        return self.walk

    def steps_for(self, rows: int, batch_size: int) -> int:
        """The same for all."""
        return self.count


part = Steps
