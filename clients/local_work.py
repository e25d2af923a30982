"""How much a client trains between receiving and sending.

--local-work "epochs(1.0)"      passes over its rows
--local-work "steps(10)"        steps of the optimizer, each round's behind those of the last one
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from fedpeft.families import LOCAL_WORK as LOCAL_WORK


class LocalWork(ABC):
    """One way to say it. Subclasses are frozen dataclasses; their fields are the user's settings."""

    least: ClassVar[int] = 1
    """The fewest steps that it may say; 0: what trains may have a number of its own."""

    @property
    def walks(self) -> bool:
        """Whether each round continues where the client's last one stopped, so that all its rows have their turn."""
        return False

    @property
    def walks_by_steps(self) -> bool:
        """The same of clients that are told a number of steps of their own."""
        return True

    @abstractmethod
    def steps_for(self, rows: int, batch_size: int) -> int:
        """Local steps of a round on a shard of `rows` rows, at least `least`."""
