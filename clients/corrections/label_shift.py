"""Label shift: clients train on logits + log(own class shares / all rows' class shares).

What is added, and why, is in `fedpeft.clients.label_shift`. The server sends the shares of all rows, which it knows
from the statistics before round 1; nothing else travels, and gradients are those of the shifted loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.clients.drift import Correction


@dataclass(frozen=True)
class LabelShift(Correction):
    """Local training that is blind to which classes a client happens to hold."""

    needs_shares: ClassVar[bool] = True


part = LabelShift
