"""Safeguards, which judge each step of the server by the loss on the validation examples.

An undone step has no effect, as if the round's updates had been lost. The global state, the residuals, control variates
and forms stay as they are. So does the server optimizer's state, without its momentum. The round is not acknowledged,
so clients also keep their states (error feedback, variates, private tensors).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class SafeguardState:
    """What a safeguard remembers of a run.

    Attributes:
        lowest: lowest validation loss of an accepted state; infinite before the first.
        rate: factor of the clients' learning rate, in (0, 1].
    """

    lowest: float = math.inf
    rate: float = 1.0


class Safeguard(ABC):
    """One rule. Subclasses are frozen dataclasses; their fields are the user's settings."""

    watches: ClassVar[bool] = True
    """Whether the safeguard needs the validation loss after each step."""

    @property
    def lowers(self) -> bool:
        """Whether the safeguard lowers the clients' learning rate; `user_dp` refuses that, as its noise would stay."""
        return self.watches

    @abstractmethod
    def judge(self, loss: float, standing: SafeguardState) -> tuple[bool, SafeguardState]:
        """Return whether a state with this validation loss is accepted, and the next standing.

        The start is judged first.
        """
