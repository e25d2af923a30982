"""A client's own model beside the global one: trained in the same rounds, on the same batches, and held near it.

Rules that want it say how strongly (`Strategy.personal_pull`). It is part of the client's own state, and stays there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedpeft.clients.drift import Acting, Correction, Pull
from fedpeft.clients.executor import Job
from torch import Tensor

from fedpeft.peft.adapter import State

PERSONAL = "personal"
"""What a client calls it among its own state."""


@dataclass(frozen=True)
class Toward(Correction):
    """The pull to the global model, which is the server's state here."""

    strength: float

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """lambda (v - w)."""

        def pull(name: str, value: Tensor) -> Tensor:
            return self.strength * (value - server[name])

        return pull


def personal_job(job: Job, own: State, strength: float) -> Job:
    """The training of a client's `own` model, beside that of the global one; empty: it starts from that."""
    return replace(job, received=job.received | own, corrections=(Acting(Toward(strength), job.received, {}),))
