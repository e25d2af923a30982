"""Exact match: 1 if an answer equals a right one letter by letter, apart from surrounding white space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.models.answers.metric import Metric


@dataclass(frozen=True)
class ExactMatch(Metric):
    """Exact match of an answer with a right one."""

    def score(self, said: str, right: Sequence[str]) -> float:
        """Return 1 for an exact match, and 0 otherwise."""
        return float(said.strip() in {answer.strip() for answer in right})


part = ExactMatch
