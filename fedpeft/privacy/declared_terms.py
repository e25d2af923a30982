"""What a real client declares of its own noise, delta and budget when it registers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedpeft.errors import RunError

LEAST_NOISE, MOST_NOISE = 0.01, 1e6
LEAST_RATE = 1e-12
LEAST_DELTA = 1e-15
MOST_RELEASES = 1_000_000
"""The most releases of a participation. Within these bounds epsilon can be computed; no federation is near them."""


@dataclass(frozen=True)
class DeclaredTerms:
    """What a client declares.

    Attributes:
        noise, rate: noise multiplier (0, or 0.01 to a million) and sampling rate (1e-12 to 1) of a release.
        releases: of one participation, 1 to a million.
        delta: that its epsilon is stated at, at least 1e-15 and below 1.
        budget: the largest epsilon that it spends, above 0; None: any.
        start: noise multiplier of its one release before round 1, as `noise`; None: there is none.

    Raises:
        RunError: something else.
    """

    noise: float
    rate: float
    releases: int
    delta: float
    budget: float | None
    start: float | None = None

    def __post_init__(self) -> None:
        for what, value, good, legal in (
            ("a noise multiplier", self.noise, self.noise == 0 or LEAST_NOISE <= self.noise <= MOST_NOISE,
             f"0, or {LEAST_NOISE:g} to {MOST_NOISE:g}"),
            ("a noise multiplier of the start", self.start,
             self.start is None or self.start == 0 or LEAST_NOISE <= self.start <= MOST_NOISE,
             f"0, or {LEAST_NOISE:g} to {MOST_NOISE:g}"),
            ("a sampling rate", self.rate, LEAST_RATE <= self.rate <= 1, f"{LEAST_RATE:g} to 1"),
            ("releases", self.releases, 1 <= self.releases <= MOST_RELEASES, f"1 to {MOST_RELEASES}"),
            ("dp_delta", self.delta, LEAST_DELTA <= self.delta < 1, f"{LEAST_DELTA:g} to 1"),
            ("a budget", self.budget, self.budget is None or 0 < self.budget < math.inf, "above 0"),
        ):  # fmt: skip
            if not good:
                raise RunError(
                    f"FP5161 the client declares {what} of {value:g}, of which no epsilon follows; legal: {legal}"
                )
