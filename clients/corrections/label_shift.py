"""Label shift: clients train on logits + log(own class shares / all rows' class shares).

What is added, and why, is in `fedpeft.clients.label_shift`. The server sends the shares of all rows, which it knows
from the statistics before round 1; nothing else travels, and gradients are those of the shifted loss. With `least` it
sends them only where clients' classes lie so far apart, and else the loss stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.clients.drift import Correction

from fedpeft.parts import setting


@dataclass(frozen=True)
class LabelShift(Correction):
    """Local training that is blind to which classes a client happens to hold."""

    needs_shares: ClassVar[bool] = True

    least: float = setting(
        0.0,
        "label skew from which on it acts: mean total variation between a client's class shares and those of all rows, "
        "0 to 1",
        low=0,
        high=1,
    )


part = LabelShift
