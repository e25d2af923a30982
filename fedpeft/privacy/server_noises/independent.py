"""New noise in every round, and clients that join by secret coins, which amplify."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.privacy.server_noise import ServerNoise


@dataclass(frozen=True)
class Independent(ServerNoise):
    """Independent noise, F = 1."""

    def check(self, separation: int) -> None:
        """Accept any separation: clients may return in the next round."""

    def factor(self, rounds: int, separation: int) -> np.ndarray | None:
        """Return None: F is the identity."""
        return None


part = Independent
