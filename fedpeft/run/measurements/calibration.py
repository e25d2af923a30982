"""Calibration: is the finished classifier as sure as it is right, before and after one temperature for all logits."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.parts import setting
from fedpeft.run.measurement import Measurement

PLACES = ("auto", "server", "clients")


@dataclass(frozen=True)
class Calibration(Measurement):
    """Temperature, calibration errors, Brier's score and the risk-coverage curve (`fedpeft.trust.calibration`)."""

    rows: str = setting(
        "auto",
        "whose rows the temperature is found on: the server's, or clients' held-out ones by sums; auto: the server's "
        "where it has any",
        choices=PLACES,
    )
    bins: int = setting(15, "of confidence, equally wide", low=2, high=100)


part = Calibration
