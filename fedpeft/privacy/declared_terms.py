"""The noise, delta and budget that a real client declares when it registers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedpeft.errors import RunError

LEAST_NOISE, MOST_NOISE = 0.01, 1e6
LEAST_RATE = 1e-12
LEAST_DELTA = 1e-15
MOST_RELEASES = 1_000_000
"""The most releases of one participation. Epsilon can be computed within these bounds; no federation comes near."""


@dataclass(frozen=True)
class DeclaredTerms:
    """The terms that a client declares.

    Attributes:
        noise: noise multiplier of a release, 0, or 0.01 to a million.
        rate: sampling rate of a release, 1e-12 to 1.
        releases: releases of one participation, 1 to a million.
        delta: the delta that its epsilon is stated at, at least 1e-15, below 1.
        budget: the largest epsilon that it spends, above 0; None: any.
        start: noise multiplier of its one release before round 1, with the range of `noise`; None: there is none.

    Raises:
        RunError: a value is out of its range.
    """

    noise: float
    rate: float
    releases: int
    delta: float
    budget: float | None
    start: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges, within which epsilon can be computed."""
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
                    f"FP5161 the client declares {what} of {value:g}, which has no computable epsilon; legal: {legal}"
                )
