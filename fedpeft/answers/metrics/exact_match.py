"""Exact match: 1 where what is said is a right answer, letter by letter; white space around it aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.answers.metric import Metric


@dataclass(frozen=True)
class ExactMatch(Metric):
    """Whether an answer is a right one, letter by letter."""

    def score(self, said: str, right: Sequence[str]) -> float:
        """1 or 0."""
        return float(said.strip() in {answer.strip() for answer in right})


part = ExactMatch
