"""Interface of metrics, which compare answers with the right ones; values are 0 to 1."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fedpeft.errors import ConfigError
from fedpeft.parts.families import METRICS as METRICS
from fedpeft.parts.spec import split_outside_parentheses


class Metric(ABC):
    """A metric. Subclasses are frozen dataclasses; their fields are the user's settings."""

    @abstractmethod
    def score(self, said: str, right: Sequence[str]) -> float:
        """Return a score from 0 to 1, for the most similar of the `right` answers (at least one)."""

    def score_all(self, said: Sequence[str], right: Sequence[Sequence[str]]) -> float:
        """Return the score of several answers (at least one), 0 to 1: by default the mean of their scores."""
        return statistics.fmean(self.score(one, answers) for one, answers in zip(said, right, strict=True))


@runtime_checkable
class NeedsLibrary(Protocol):
    """The metric needs a library that may be missing."""

    def check(self) -> None:
        """Check that the metric can be used.

        Raises:
            AssetError: a library is missing.
        """


def parse_metrics(text: str) -> dict[str, Metric]:
    """Return the metrics in `text`, joined by ",", by their specifications, after a check of their libraries.

    Raises:
        ConfigError: a metric does not exist, or `text` is empty.
        AssetError: a library is missing.
    """
    texts = [part.strip() for part in split_outside_parentheses(text, ",") if part.strip()]
    found = {part: METRICS.build(part) for part in texts}
    for metric in found.values():
        if isinstance(metric, NeedsLibrary):
            metric.check()
    if not found:
        raise ConfigError(f"FP1033 --metrics is empty; legal: {', '.join(METRICS.names)}")
    return found
