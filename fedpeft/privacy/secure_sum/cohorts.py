"""The least cohort of a secure sum; it is checked before torch is loaded."""

from __future__ import annotations

from typing import Final

from fedpeft.errors import PrivacyError

FEWEST: Final = 3
"""The fewest clients of a sum: each of two could subtract its own summand and read the other."""


def check_cohort(name: str, cohort: int) -> None:
    """Reject a sum of so few clients that one contribution could be separated from the others.

    Raises:
        PrivacyError: the cohort has fewer than `FEWEST` clients.
    """
    if cohort < FEWEST:
        raise PrivacyError(f"FP7079 {name} adds up the updates of {FEWEST} clients or more; the cohort has {cohort}")
