"""New noise in every round, and clients that join by secret coins, which amplify."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.privacy.server_noise import ServerNoise


@dataclass(frozen=True)
class Independent(ServerNoise):
    """F = 1."""

    def check(self, separation: int) -> None:
        """Nothing: clients may come back at once."""

    def factor(self, rounds: int, separation: int) -> np.ndarray | None:
        """1."""
        return None


part = Independent
