"""Audit of secure sums: how many colluding clients they tolerate, compared with the number that the settings assume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedpeft.privacy.secure_sum.collusion import count_tolerated, explain_excess
from fedpeft.privacy.secure_sum.sum import SecureSum

COHORTS: Final = (3, 4, 5, 10, 20, 100)


@dataclass(frozen=True)
class SumVerdict:
    """Result of the audit.

    Attributes:
        tolerated: for each number of clients in a sum, how many of them may collude with the server.
        excess: one clause about the first cohort that tolerates fewer than assumed; empty: there is none.
    """

    tolerated: dict[int, int]
    excess: str


def audit_sums(secure: SecureSum) -> SumVerdict:
    """Return how many colluding clients the sums of typical cohorts tolerate."""
    terms = {clients: secure.terms(clients) for clients in COHORTS}
    excesses = [explain_excess(terms[clients], clients, secure.assumed_colluding) for clients in COHORTS]
    return SumVerdict({n: count_tolerated(terms[n]) for n in COHORTS}, next(filter(None, excesses), ""))
