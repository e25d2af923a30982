"""The sentence at the top of a run's summary: the saved adapter compared with the linear probe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def describe_outcome(summary: Mapping[str, Any], of_test_rows: str) -> str:
    """Return one sentence about the test score and the probe's on the same examples, or nothing without both.

    Two accuracies are called different if they lie at least two standard errors apart. The error treats the two as
    independent, so it errs on the side of caution: both are right on many of the same examples.

    Args:
        summary: the content of summary.json; of `targets`, only `rows` is read.
        of_test_rows: the value of `accuracy_of` for scores on test examples.
    """
    score, probe = summary["accuracy"], summary["baseline_accuracy"]
    if probe is None or summary["accuracy_of"] != of_test_rows or not math.isfinite(score):
        return ""
    metric, points = summary["metric"].replace("_", " "), round(100 * score - 100 * probe, 1)
    what, base = f"The test {metric} of the saved adapter, {score:.1%},", "the frozen base model's linear probe"
    if metric == "accuracy" and abs(score - probe) < _compute_tolerance(score, probe, summary):
        verdict = (
            f"can't be distinguished from that of {base}, {probe:.1%}, on {summary['targets']['rows']:,} test examples"
        )
    elif not points:
        verdict = f"equals that of {base}"
    else:
        verdict = f"is {abs(points):.1f} points {'above' if points > 0 else 'below'} that of {base}, {probe:.1%}"
    start = "" if summary["kept_round"] else ". No round was clearly better than the start, so the start is kept"
    return f"{what} {verdict}{start}."


def _compute_tolerance(score: float, probe: float, summary: Mapping[str, Any]) -> float:
    """Return two standard errors of the difference; 0 if the number of test examples is unknown."""
    rows = (summary.get("targets") or {}).get("rows")
    return 2 * math.sqrt((score * (1 - score) + probe * (1 - probe)) / rows) if rows else 0.0
