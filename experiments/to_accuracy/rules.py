"""The rules: levels from Flower's curves, where a curve crosses a level, and what makes a trial the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fedpeft.errors import RunError

SHARES = (0.5, 0.8, 0.95, 0.99)
"""Levels, as shares of Flower's gain from its start to its best validation accuracy."""

TOLERANCE = 1e-9
"""Rounding that a level may have. Accuracies differ by whole examples, which is far more."""


@dataclass(frozen=True)
class Curve:
    """The evaluations of a run in order; the lists have one entry each.

    Attributes:
        rounds: rounds before the evaluation; 0: before round 1.
        seconds: seconds since the process was started, without those of evaluations.
        bytes: bytes to and from clients until then.
        accuracy: validation accuracy, 0 to 1.
    """

    rounds: list[int]
    seconds: list[float]
    bytes: list[int]
    accuracy: list[float]

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Curve:
        """Return the curve in a line of results.jsonl."""
        return cls(**line["curve"])


def find_crossing(curve: Curve, level: float) -> int | None:
    """Return the index of the first evaluation at or above the level; None: there is none."""
    reached = (i for i, accuracy in enumerate(curve.accuracy) if accuracy >= level - TOLERANCE)
    return next(reached, None)


def derive_levels(curves: Sequence[Curve]) -> dict[str, float]:
    """Return the levels of a task by name, from Flower's curves of several seeds.

    The start is the median of the accuracies before round 1, and the best is the median of each curve's highest
    accuracy. A level is the start and a share of the gain (`SHARES`) between the two.

    Raises:
        RunError: there are no curves, or they show no gain.
    """
    start = median(curve.accuracy[0] for curve in curves) if curves else 0.0
    best = median(max(curve.accuracy) for curve in curves) if curves else 0.0
    if best <= start:
        raise RunError(
            f"Flower's {len(curves)} runs lead from an accuracy of {start:.3f} to {best:.3f} at best, and levels need "
            "a gain; widen the search in experiments/to_accuracy/settings.py"
        )
    return {f"{100 * share:g} %": start + share * (best - start) for share in SHARES}


def compute_area(curve: Curve, seconds: float) -> float:
    """Return the mean, over the `seconds` after the start, of the highest accuracy so far.

    It rates a trial: a high value needs a fast rise and a high end. Each accuracy counts from its evaluation on.
    """
    origin, highest, area, last = curve.seconds[0], curve.accuracy[0], 0.0, 0.0
    for when, accuracy in zip(curve.seconds, curve.accuracy, strict=True):
        now = min(when - origin, seconds)
        area += highest * (now - last)
        highest, last = max(highest, accuracy), now
    return (area + highest * (seconds - last)) / seconds
