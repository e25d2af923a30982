"""What one attack achieved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fedpeft.rounds.progress import ServerState

ALIKE: Final = 0.99
"""Smallest correlation with a client's update at which the update counts as read."""

VICTIM: Final = 0
"""Id of the client whose update an attacker wants; ids follow the order of names."""


@dataclass(frozen=True)
class Outcome:
    """Result of one attack.

    Attributes:
        read: by client, the largest correlation of a vector that the attacker holds with the client's update.
        sums: number of sums that the server formed in training rounds.
        reports: number of updates that arrived without masks.
        refusals: first reason why each honest client, or the server, refused, by its name.
        rounds: number of completed training rounds, and how many of them moved the model.
        lines: lines that the server printed for its user.
        progress: the server's final state; None: it was stopped.
        timed_out: whether it had not ended after the longest duration.
    """

    read: dict[str, float]
    sums: int
    reports: int
    refusals: dict[str, str]
    rounds: tuple[int, int]
    lines: list[str]
    progress: ServerState | None
    timed_out: bool = False

    @property
    def victims(self) -> list[str]:
        """Clients whose updates were read."""
        return [name for name, alike in self.read.items() if alike >= ALIKE]
