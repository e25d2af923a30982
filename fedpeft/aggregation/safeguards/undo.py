"""Undo a step that raises the validation loss too far, and lower the clients' learning rate from then on.

    loss > (1 + rise) * lowest   ->   the step is undone, and the clients' learning rate is multiplied by `rate`

`lowest` is the lowest validation loss so far, including the start. AdamW's steps are as long as the learning rate,
however small the gradient. At a rate that is too high for model and method, clients end far from a good start. A
shorter step of the server towards their mean does not help, so the clients' rate is lowered. An adaptive server
optimizer, whose steps have their own length, also takes shorter ones. Momentum would repeat the step and is dropped.
The rule is a trust region whose radius is the rate and only shrinks. Own rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedpeft.aggregation.safeguard import Safeguard, SafeguardState
from fedpeft.parts import setting


@dataclass(frozen=True)
class Undo(Safeguard):
    """A limit on the validation loss, relative to its lowest value, and a lower rate after each undone step."""

    rise: float = setting(0.25, "share by which the validation loss may lie above the lowest so far", low=0)
    rate: float = setting(0.25, "what an undone step multiplies the clients' learning rate by", above=0, high=1)

    @property
    def lowers(self) -> bool:
        """Whether the rate is below 1."""
        return self.rate < 1

    def judge(self, loss: float, standing: SafeguardState) -> tuple[bool, SafeguardState]:
        """Accept a loss up to 1 + rise times the lowest; never NaN."""
        if loss <= (1 + self.rise) * standing.lowest:
            return True, replace(standing, lowest=min(loss, standing.lowest))
        return False, replace(standing, rate=standing.rate * self.rate)


part = Undo
