"""Sums under masks in which each client adds its share of the noise (`fedpeft.privacy.skellam`).

    y_k = floor(H2 D2 H1 D1 x_k / step + u_k) + Skellam(mu / (n - t))  mod M,   t = floor(dropouts * n)

The vectors wrap; their sum wraps in few entries at most (`fedpeft.privacy.skellam.SPREAD`). Fewer than n - t vectors
contain too little noise, so no client helps to remove their masks: the sum is void, and charged. The numbers beside the
vector are the same for every client, whatever its examples.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.errors import PrivacyError
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.integers import Integers, rotate
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.privacy.skellam import Grid, draw_skellam


@dataclass(frozen=True)
class NoisyIntegers(Integers):
    """Integers with a share of noise.

    Attributes:
        grid: the grid that they lie on.
        bounded: whether a vector is clipped as a whole; else it is a sum of summands that were clipped before.
        dropouts: how many clients may drop out.
    """

    grid: Grid
    bounded: bool
    dropouts: int

    @property
    def step(self) -> float:
        """The step of the grid."""
        return self.grid.step

    def whole(self, vector: np.ndarray, signs: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return the vector, rounded and with noise, as whole numbers of steps, (size,) int64.

        Values that are not finite count as 0: an error would reveal them.
        """
        vector = np.nan_to_num(vector, nan=0.0, posinf=0.0, neginf=0.0)
        length = float(np.linalg.norm(vector))
        if self.bounded and length > self.clip:
            vector = vector * (self.clip / length) if math.isfinite(length) else np.zeros_like(vector)
        steps = np.floor(rotate(vector, signs) / self.step + random.random(len(vector)))
        half = 2.0**62
        noise = draw_skellam(random, self.grid.share(self.clients, self.dropouts), len(vector))
        return np.asarray(np.clip(steps, -half, half).astype(np.int64) + noise)


@dataclass(frozen=True)
class SharedNoise(SecureSum):
    """The secure sums of a mechanism whose noise clients share.

    Attributes:
        mechanism: name of the mechanism.
        clip: C of rounds; before round 1 it is 1.
        dropouts: share of a cohort that may drop out, at least 0.
        rows: whether clients send sums of clipped gradients of examples; else updates, clipped as a whole.
        assumed_colluding: share of a sum's clients that reveal their noise to the server, see `SecureSum`.
        rate: probability with which each example joins a round, the same for all clients; 1 for updates.
        expected: expected number of summands (clients, or examples), which sums are divided by.
        first: the grid before round 1; None: there is no sum.
        later: the grid of rounds; None: there are no rounds.
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
        """Reject cohorts that are too small for masks.

        Raises:
            PrivacyError: the message contains the least number of clients.
        """
        if cohort < FEWEST:
            raise PrivacyError(
                f"FP7079 {self.name} adds up the updates of {FEWEST} clients or more; the cohort has {cohort}"
            )

    @property
    def name(self) -> str:
        """The name of the mechanism on the command line."""
        return self.mechanism

    def count_permitted_dropouts(self, clients: int) -> int:
        """Return how many of `clients` clients may drop out."""
        return math.floor(self.dropouts * clients)

    def least(self, clients: int) -> int:
        """Return the fewest vectors that contain enough noise."""
        return clients - self.count_permitted_dropouts(clients)

    def grid_digest(self, round_number: int) -> bytes:
        """Return a digest of the round's grid: clients with another grid or noise are in another sum."""
        grid = self.later if round_number else self.first
        return b"" if grid is None else struct.pack(">Iddd", grid.size, grid.step, grid.radius, grid.variance)

    def fits(self, clients: int, bits: int) -> bool:
        """Return whether a digit of each number fits; the vectors may wrap."""
        return clients < 1 << (bits - 1)

    def integers(self, clients: int, bits: int, size: int, numbers: int, clip: float, round_number: int) -> Integers:
        """Return the conversion to integers on the grid of the round, by the client's own settings.

        Raises:
            PrivacyError: the settings give no noise for such a sum.
        """
        grid, clip = (self.later, self.clip) if round_number else (self.first, 1.0)
        if grid is None or size > grid.size:
            raise PrivacyError(f"FP7080 a sum of {size} entries is announced, for which {self.name} has no noise")
        return NoisyIntegers(
            clients, bits, size, numbers, clip, grid, not self.rows, self.count_permitted_dropouts(clients)
        )

    def variance(self, clients: int, round_number: int) -> float:
        """Return the variance of the noise in each entry of a sum if all of `clients` clients have answered."""
        grid = self.later if round_number else self.first
        assert grid is not None
        return grid.share(clients, self.count_permitted_dropouts(clients)) * clients * grid.step**2
