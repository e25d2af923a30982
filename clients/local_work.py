"""How much a client trains between receiving and sending.

--local-work "epochs(1.0)"      passes over its examples
--local-work "steps(10)"        steps of the optimizer; each round's follow those of the last one
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, runtime_checkable


class LocalWork(ABC):
    """One unit of local work. Subclasses are frozen dataclasses; their fields are the user's settings."""

    least: ClassVar[int] = 1
    """The fewest steps that it may set; 0: the trainer may have its own number."""

    @abstractmethod
    def steps_for(self, rows: int, batch_size: int) -> int:
        """Return the local steps of a round on a shard of `rows` examples, at least `least`."""


@runtime_checkable
class WalksExamples(Protocol):
    """A round can continue where the client's last one stopped, so that all its examples take part."""

    def continues_walk(self) -> bool:
        """Return whether it does; False: each round shuffles the examples anew."""
