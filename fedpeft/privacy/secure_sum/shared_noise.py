"""Sums under masks in which each client adds its share of the noise (`fedpeft.privacy.skellam`).

    y_k = floor(H2 D2 H1 D1 x_k / step + u_k) + Skellam(mu / (n - t))  mod M,   t = floor(dropouts * n)

The vectors wrap: their sum does not, but in few entries (`fedpeft.privacy.skellam.SPREAD`). Fewer than n - t of them
would hold too little noise, so no client helps to take the masks off; the sum is void, and charged. The numbers beside
the vector are the same for every client, whatever its rows.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.errors import PrivacyError
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.integers import Integers, rotated
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.privacy.skellam import Grid, skellam


@dataclass(frozen=True)
class NoisyIntegers(Integers):
    """Integers with a share of noise.

    Attributes:
        grid: that they lie on.
        bounded: whether a vector is clipped as a whole; else it is a sum of what was clipped before.
        dropouts: how many clients may drop out.
    """

    grid: Grid
    bounded: bool
    dropouts: int

    @property
    def step(self) -> float:
        """Of the grid."""
        return self.grid.step

    def whole(self, vector: np.ndarray, signs: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Rounded, and noised; what is not finite counts as 0: to fail for it would tell of it."""
        vector = np.nan_to_num(vector, nan=0.0, posinf=0.0, neginf=0.0)
        length = float(np.linalg.norm(vector))
        if self.bounded and length > self.clip:
            vector = vector * (self.clip / length) if math.isfinite(length) else np.zeros_like(vector)
        steps = np.floor(rotated(vector, signs) / self.step + random.random(len(vector)))
        half = 2.0**62
        noise = skellam(random, self.grid.share(self.clients, self.dropouts), len(vector))
        return np.asarray(np.clip(steps, -half, half).astype(np.int64) + noise)


@dataclass(frozen=True)
class SharedNoise(SecureSum):
    """The secure sums of a mechanism whose noise clients share.

    Attributes:
        mechanism: its name.
        clip: C of rounds; before round 1 it is 1.
        dropouts: share of a cohort that may drop out, at least 0.
        rows: whether clients send sums of gradients, each clipped; else updates, clipped as a whole.
        assumed_colluding: share of a sum's clients that tell the server their noise, see `SecureSum`.
        rate: with which each row of a client joins a round, whoever's it is; 1 for updates.
        expected: what sums are divided by: of clients, or of rows.
        first: the grid before round 1; None: nothing is summed.
        later: the grid of rounds; None: there are none.
    """

    mechanism: str = ""
    clip: float = 1.0
    dropouts: float = 0.0
    assumed_colluding: float = 0.0  # type: ignore[misc]
    rows: bool = False
    rate: float = 1.0
    expected: float = 1.0
    first: Grid | None = None
    later: Grid | None = None

    noisy: ClassVar[bool] = True

    def check(self, cohort: int) -> None:
        """Refuse sums of too few clients for masks.

        Raises:
            PrivacyError: says how many it takes.
        """
        if cohort < FEWEST:
            raise PrivacyError(
                f"FP7079 {self.name} adds up the updates of {FEWEST} clients or more; the cohort has {cohort}"
            )

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.mechanism

    def permitted(self, clients: int) -> int:
        """How many of so many clients may drop out."""
        return math.floor(self.dropouts * clients)

    def least(self, clients: int) -> int:
        """Vectors without which there is too little noise."""
        return clients - self.permitted(clients)

    def grid_digest(self, round_number: int) -> bytes:
        """Of the round's grid: whoever rounds or noises otherwise is in another sum."""
        grid = self.later if round_number else self.first
        return b"" if grid is None else struct.pack(">Iddd", grid.size, grid.step, grid.radius, grid.variance)

    def fits(self, clients: int, bits: int) -> bool:
        """Whether a digit of each number fits; the vectors may wrap."""
        return clients < 1 << (bits - 1)

    def integers(self, clients: int, bits: int, size: int, numbers: int, clip: float, round_number: int) -> Integers:
        """On the grid of the round, by the client's own settings.

        Raises:
            PrivacyError: there is no noise for such a sum.
        """
        grid, clip = (self.later, self.clip) if round_number else (self.first, 1.0)
        if grid is None or size > grid.size:
            raise PrivacyError(f"FP7080 a sum of {size} entries is announced, for which {self.name} has no noise")
        return NoisyIntegers(clients, bits, size, numbers, clip, grid, not self.rows, self.permitted(clients))

    def variance(self, clients: int, round_number: int) -> float:
        """Of the noise in each entry of a sum that so many clients were asked for and all have answered."""
        grid = self.later if round_number else self.first
        assert grid is not None
        return grid.share(clients, self.permitted(clients)) * clients * grid.step**2
