"""Disagreement: what the adapter has learned, layer by layer, and where clients pull in different directions."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.parts import setting
from fedpeft.run.measurement import Measurement


@dataclass(frozen=True)
class Disagreement(Measurement):
    """Each round's clients against each other, and the finished adapter's spectra (`fedpeft.trust.disagreement`).

    Where nobody may see a client's update, or privacy covers the released model alone, only the spectra are told.
    """

    causal: bool = setting(
        True, "evaluate the model without each layer's leading direction, and shrunk to the same norm instead"
    )


part = Disagreement
