"""Ensemble: the mean of the predictions of the last global states, a model that doubts where they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.parts import setting
from fedpeft.run.measurement import Measurement


@dataclass(frozen=True)
class Ensemble(Measurement):
    """The last `last` global states together on the test rows (`fedpeft.simulation.ensemble`)."""

    last: int = setting(3, "states, those after the last rounds", low=2, high=100)

    simulated: ClassVar[bool] = True


part = Ensemble
