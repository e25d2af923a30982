"""A step that raises the validation loss too far is undone, and clients train more gently from then on.

    loss > (1 + rise) * lowest   ->   the step is undone, and the clients' learning rate is multiplied by `rate`

`lowest` is the lowest validation loss so far, the start's included. AdamW's steps are as long as the rate, however
small the gradient, so at a rate that does not suit model and method clients end far from a good start, and a shorter
step of the server towards their mean does not mend that: it is the clients' rate that has to fall. An adaptive server
optimizer has steps of its own length, and takes shorter ones as well; momentum, which would lead there again, is
forgotten. The rule is a trust region whose radius is that rate, and only shrinks. It is taken from no paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedpeft.aggregation.safeguard import Safeguard, SafeguardState
from fedpeft.parts import setting


@dataclass(frozen=True)
class Undo(Safeguard):
    """A step that raises the validation loss above its lowest by a share is undone, and clients' rates are lowered."""

    rise: float = setting(0.25, "share by which the validation loss may lie above the lowest so far", low=0)
    rate: float = setting(0.25, "what an undone step multiplies the clients' learning rate by", above=0, high=1)

    @property
    def lowers(self) -> bool:
        """With a rate below 1."""
        return self.rate < 1

    def judge(self, loss: float, standing: SafeguardState) -> tuple[bool, SafeguardState]:
        """A loss that is no number never counts."""
        if loss <= (1 + self.rise) * standing.lowest:
            return True, replace(standing, lowest=min(loss, standing.lowest))
        return False, replace(standing, rate=standing.rate * self.rate)


part = Undo
