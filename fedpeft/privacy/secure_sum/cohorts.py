"""How few clients a secure sum may have; it is checked before torch is loaded."""

from __future__ import annotations

from typing import Final

from fedpeft.errors import PrivacyError

FEWEST: Final = 3
"""Clients of a sum: each of two could take its own summand off."""


def check_cohort(name: str, cohort: int) -> None:
    """Refuse a sum of so few clients that one could be told from the others.

    Raises:
        PrivacyError: the cohort has fewer than `FEWEST`.
    """
    if cohort < FEWEST:
        raise PrivacyError(f"FP7079 {name} adds up the updates of {FEWEST} clients or more; the cohort has {cohort}")
