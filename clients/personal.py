"""A client's own model beside the global one: trained in the same rounds, on the same batches, and held near it.

`PersonalModel` sets how strongly. The model is part of the client's own state, and stays there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedpeft.clients.drift import ActiveCorrection, Correction, Pull
from fedpeft.clients.executor import Job
from fedpeft.clients.stages import ClientRound, ClientStage, Train
from fedpeft.clients.store import add_label, select_section
from torch import Tensor

from fedpeft.communication.messages import Instruction
from fedpeft.peft.adapter import State

PERSONAL = "personal"
"""Section of the client's state that holds its own model."""


@dataclass(frozen=True)
class GlobalPull(Correction):
    """The pull to the global model, which stands in for the server's state here."""

    strength: float

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """Return the pull lambda (v - w), with w the global model."""

        def pull(name: str, value: Tensor) -> Tensor:
            return self.strength * (value - server[name])

        return pull


def create_personal_job(job: Job, own: State, strength: float) -> Job:
    """Return the training of a client's `own` model beside that of the global one; empty: start from the global one."""
    return replace(
        job, received=job.received | own, corrections=(ActiveCorrection(GlobalPull(strength), job.received, {}),)
    )


class PersonalStage(ClientStage):
    """Trains a client's own model in a second pass, and evaluates it in place of the global one."""

    def __init__(self, strength: float) -> None:
        """Hold `strength`, the factor lambda of the pull."""
        self.strength = strength

    def keeps(self, instruction: Instruction) -> bool:
        """Return True: the model stays with the client."""
        return True

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round with the client's own model, if it is to be evaluated."""
        if client_round.instruction.kind != "evaluate":
            return client_round
        own = client_round.job.received | select_section(client_round.state, PERSONAL)
        return replace(client_round, job=replace(client_round.job, received=own))

    def second_pass(self, rounds: Sequence[ClientRound], train: Train) -> Sequence[ClientRound]:
        """Return the rounds with the clients' own models, trained, in their states."""
        jobs = [create_personal_job(r.job, select_section(r.state, PERSONAL), self.strength) for r in rounds]
        results = train([replace(r, job=job) for r, job in zip(rounds, jobs, strict=True)])
        models = [add_label(PERSONAL, result.state) for result in results]
        return [replace(r, state=r.state | model) for r, model in zip(rounds, models, strict=True)]
