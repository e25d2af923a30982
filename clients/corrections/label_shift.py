"""Label shift: clients train on logits + log(own class shares / all examples' class shares).

`fedpeft.clients.label_shift` explains the offsets. The server computes the class shares of all examples from the
statistics before round 1 and sends them; no other state travels. Gradients are those of the shifted loss. With `least`
it sends the shares only if the label skew is at least that large; otherwise the loss stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.clients.drift import Correction

from fedpeft.parts import setting


@dataclass(frozen=True)
class LabelShift(Correction):
    """Local training that does not depend on which classes a client happens to hold."""

    needs_shares: ClassVar[bool] = True

    least: float = setting(
        0.0,
        "smallest label skew at which it acts: mean total variation between a client's and the global class shares, "
        "0 to 1",
        low=0,
        high=1,
    )


part = LabelShift
