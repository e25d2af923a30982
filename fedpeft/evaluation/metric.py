"""What a metric of answers is: how near what a model says comes to a right answer, from 0 to 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from fedpeft.parts import Family


class Metric(ABC):
    """One metric. Subclasses are frozen dataclasses; their fields are the user's settings."""

    def check(self) -> None:  # noqa: B027
        """Refuse to be used, or AssetError: a library is missing; by default there is none."""

    @abstractmethod
    def score(self, said: str, right: Sequence[str]) -> float:
        """From 0 to 1, by the nearest of the `right` answers (at least one)."""


METRICS: Family[Metric] = Family("fedpeft.evaluation.metrics", "metric", kind=Metric)
"""All metrics, by file name."""
