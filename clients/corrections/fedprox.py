"""FedProx (Li et al., arXiv 1812.06127): a penalty keeps a client near what it received.

    minimize  F_k(y) + mu / 2 |y - x|^2,        so  g <- g + mu (y - x)

The server takes no part and no extra state travels. mu = 0 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.clients.drift import Correction, Pull
from fedpeft.clients.executor import Job
from torch import Tensor

from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class FedProx(Correction):
    """The pull back to where the round began."""

    mu: float = setting(0.01, "strength of the penalty mu/2 |x - received|^2 (paper: 0.001 to 1)", low=0)

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """Return the pull mu (y - x), with x the received state."""

        def pull(name: str, value: Tensor) -> Tensor:
            return self.mu * (value - job.received[name])

        return pull


part = FedProx
