"""Forgetting: a second data set that base and result are scored on shows what tuning has cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.families import DATASETS
from fedpeft.parts import setting
from fedpeft.run.measurement import Measurement


@dataclass(frozen=True)
class Forgetting(Measurement):
    """A second data set, before and after tuning."""

    dataset: str = setting(
        dataclasses.MISSING,
        "its text, such as reuters_r8, or in quotes 'file:PATH' and 'tiny(seed=1)'",
        nested=DATASETS,
    )

    simulated: ClassVar[bool] = True


part = Forgetting
