"""The releases that a run's epsilon does not cover, in words for `summary.json`, since nobody can quantify them."""

from __future__ import annotations

from fedpeft.privacy.mechanism import Mechanism

SUNDRY = (
    "numbers of examples, also of those that are cut short or that test examples repeat; byte counts, and the time "
    "that work takes",
    "scores on validation and test examples, which a simulation takes from the same data: rounds.jsonl, summary.json, "
    "predictions.npz, and evaluations.jsonl, whose questions are validation examples if no file is named",
    "what others can't read: clients.jsonl, clients.npz, checkpoint/, clients/ and estimates/ reveal who took part",
    "what a simulation alone can measure: the linear probe, the private probe, pooled examples",
    "that a run has ended early since somebody's budget was spent, which secret draws decide",
    "settings chosen, and runs stopped or repeated, after looking at results",
    "attacks on floating-point noise and on the pseudo-random generator (Philox, 128-bit key)",
)
"""Releases that no mechanism covers."""

RAW = "what clients report about their examples, such as losses (raw_metrics)"

LABELS = "the names of classes, and so the head's shape and adapter/labels.json, are those of the training examples"


def list_uncovered(mechanism: Mechanism, labels_of_rows: bool) -> list[str]:
    """Return the releases of a run under `mechanism` that its epsilon does not cover, one item each.

    Args:
        mechanism: the mechanism.
        labels_of_rows: whether nobody has named the classes, so that the only example of a class reveals itself.
    """
    return [*([RAW] if mechanism.raw_metrics else []), *([LABELS] if labels_of_rows else []), *SUNDRY]
