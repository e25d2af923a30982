"""No protection, under the rules of protected runs: the reference for comparisons.

Weights are uniform and the head starts at zero, so a private run differs only by clipping and noise. Nothing is hidden:
clients report losses and numbers of examples as they do without --privacy, and rules that use them are allowed. With
`audit=True` its membership can be attacked, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.errors import PrivacyError
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.mechanism import Mechanism


@dataclass(frozen=True)
class NoProtection(Mechanism):
    """Mechanism without clipping and noise."""

    privacy_unit: ClassVar[str] = "nobody"
    neighbours: ClassVar[str] = "none"
    sampling: ClassVar[str] = "none"
    protects: ClassVar[bool] = False

    def check(self, exposure: Exposure) -> None:
        """Reject a budget.

        Raises:
            PrivacyError: epsilon or noise_multiplier is given.
        """
        if self.epsilon is not None or self.noise_multiplier is not None:
            raise PrivacyError("FP7066 privacy none has no epsilon and no noise; use dp_sgd, user_dp or local_dp")

    def units(self, exposure: Exposure) -> int:
        """Return the number of clients."""
        return exposure.clients

    def plan_releases(self, exposure: Exposure) -> list[tuple[float, int]]:
        """Return no releases: nothing is accounted for."""
        return []

    def charges(self, exposure: Exposure, cohort: Sequence[int], noise: float) -> Charges:
        """Return no charges."""
        return {}


part = NoProtection
