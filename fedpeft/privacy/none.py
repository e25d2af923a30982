"""No protection, under the rules of protected runs: the reference that they are compared with.

Weights are uniform, the head starts at zero, and nothing of the clients' metrics is reported, so that a run differs
from a private one in clipping and noise alone. With `audit=True` its membership can be attacked, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.errors import PrivacyError
from fedpeft.ledger import Charges
from fedpeft.mechanism import Federation, Mechanism


@dataclass(frozen=True)
class NoProtection(Mechanism):
    """Neither clipping nor noise."""

    unit: ClassVar[str] = "nobody"
    neighbours: ClassVar[str] = "none"
    sampling: ClassVar[str] = "none"
    protects: ClassVar[bool] = False

    def check(self, federation: Federation) -> None:
        """Refuse a budget.

        Raises:
            PrivacyError: epsilon or noise are given.
        """
        if self.epsilon is not None or self.noise_multiplier is not None:
            raise PrivacyError("privacy none has no epsilon and no noise; take dp_sgd, user_dp or local_dp")

    def units(self, federation: Federation) -> int:
        """The clients."""
        return federation.clients

    def planned(self, federation: Federation) -> list[tuple[float, int]]:
        """Nothing is accounted for."""
        return []

    def charges(self, federation: Federation, cohort: Sequence[int], noise: float) -> Charges:
        """Nothing is charged."""
        return {}


part = NoProtection
