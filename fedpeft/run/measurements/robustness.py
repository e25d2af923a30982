"""Robustness: what typos, other words, small movements of embeddings, or spoiled images leave of the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.parts import setting
from fedpeft.run.measurement import Measurement


@dataclass(frozen=True)
class Robustness(Measurement):
    """The finished classifier on test rows that were changed (`fedpeft.trust.corruption`), the worst of some draws."""

    rows: int = setting(300, "test examples that are looked at, always the same", low=1)
    draws: int = setting(5, "of each change; the worst counts for a row", low=1, high=100)
    attack: bool = setting(True, "of texts: move embeddings along the gradient, too (fedpeft.trust.attacked)")

    simulated: ClassVar[bool] = True


part = Robustness
