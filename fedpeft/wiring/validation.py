"""Validation: the global model on rows that nobody trains on, every few rounds, and what these rows decide.

`auto` means: as much as is right (`fedpeft.wiring.training_control`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement

KEPT = ("auto", "best", "last")


@dataclass(frozen=True)
class Validation(Measurement):
    """Evaluation on validation examples, every few rounds."""

    every: int = setting(4, "rounds between evaluations", low=1)
    keep: str = setting(
        "auto",
        "which state is the result; auto: the best, where these rows may decide; best: the start, unless two rows more "
        "are right",
        choices=KEPT,
    )
    patience: int = setting(0, "evaluations without a better state after which the run ends; 0: all rounds", low=0)
    public: bool = setting(
        False, "under privacy: the validation examples are public, may choose the kept state and be fitted on"
    )
    score_last: bool = setting(False, "also score the last state on the test examples if a better one is kept")


part = Validation
