"""What a metric of answers is: how near what a model says comes to a right answer, from 0 to 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from fedpeft.errors import ConfigError
from fedpeft.families import METRICS as METRICS
from fedpeft.spec import split_outside_parentheses


class Metric(ABC):
    """One metric. Subclasses are frozen dataclasses; their fields are the user's settings."""

    def check(self) -> None:  # noqa: B027
        """Refuse to be used, or AssetError: a library is missing; by default there is none."""

    @abstractmethod
    def score(self, said: str, right: Sequence[str]) -> float:
        """From 0 to 1, by the nearest of the `right` answers (at least one)."""


def parse_metrics(text: str) -> dict[str, Metric]:
    """The metrics that `text` names, joined by ",", by their texts, with their libraries.

    Raises:
        ConfigError: there is no such metric, or none is named.
        AssetError: a library is missing.
    """
    texts = [part.strip() for part in split_outside_parentheses(text, ",") if part.strip()]
    found = {part: METRICS.build(part) for part in texts}
    for metric in found.values():
        metric.check()
    if not found:
        raise ConfigError(f"FP1033 --metrics names none; legal: {', '.join(METRICS.names)}")
    return found
