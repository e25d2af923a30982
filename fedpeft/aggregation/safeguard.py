"""Whether a round's step counts: the server looks at what it does to the validation rows first.

A step that does not count leaves nothing behind, as if the round's updates had been lost on the way: the global state,
what goes into the base, control variates and forms stay, the server optimizer's memory too, but for momentum, which is
forgotten, and the round is not acknowledged, so that what clients keep between rounds (error feedback, variates,
tensors of their own) stays as well.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.families import SAFEGUARDS as SAFEGUARDS


@dataclass(frozen=True)
class SafeguardState:
    """What a safeguard knows of a run.

    Attributes:
        lowest: the lowest validation loss of a state that counted; infinite before the first.
        rate: what the clients' learning rate is multiplied by, in (0, 1].
    """

    lowest: float = math.inf
    rate: float = 1.0


class Safeguard(ABC):
    """One rule. Subclasses are frozen dataclasses; their fields are the user's settings."""

    watches: ClassVar[bool] = True
    """Whether it wants to know the validation loss after each step."""

    @property
    def lowers(self) -> bool:
        """Whether it lowers the clients' learning rate; not where noise would stay as large (`user_dp`)."""
        return self.watches

    @abstractmethod
    def judge(self, loss: float, standing: SafeguardState) -> tuple[bool, SafeguardState]:
        """Whether a state with this validation loss counts, and the standing after it; the start is judged first."""
