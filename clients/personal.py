"""A client's own model beside the global one: trained in the same rounds, on the same batches, and held near it.

`PersonalModel` sets how strongly. The model is part of the client's own state, and stays there. Under a rule with the
ability `MixesModels`, a client is evaluated with a mix of both models. After each training it finds the global model's
share and keeps it beside its own model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from fedpeft.clients.curvature import compute_fisher_diagonal
from fedpeft.clients.drift import ActiveCorrection, Correction, Pull
from fedpeft.clients.executor import Job
from fedpeft.clients.stages import ClientRound, ClientStage, Train
from fedpeft.clients.store import add_label, select_section
from fedpeft.clients.workbench import Workbench
from torch import Tensor

from fedpeft.aggregation.abilities import MixesModels, PersonalModel
from fedpeft.communication.messages import Instruction
from fedpeft.peft.adapter import State

PERSONAL = "personal"
"""Section of the client's state that holds its own model."""

SHARE = "mix/share"
"""Name of the global model's share of the mix, (1,) in fp64, in the client's state."""


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


def compose_model(shared: State, kept: State) -> State:
    """Return the model that a client uses: its own one in place of the `shared` one, or their mix.

    `kept` is the client's own state; it has no model of its own before its first round.
    """
    own = select_section(kept, PERSONAL)
    if SHARE in kept:
        share = float(kept[SHARE])
        own = {name: share * shared[name] + (1 - share) * tensor for name, tensor in own.items()}
    return shared | own


class PersonalStage(ClientStage):
    """Trains a client's own model in a second pass, and evaluates it in place of the global one."""

    def __init__(self, strategy: PersonalModel, bench: Workbench) -> None:
        """Hold the strategy, and the workbench that measures models."""
        self.strategy, self.bench = strategy, bench

    def keeps(self, instruction: Instruction) -> bool:
        """Return True: the model stays with the client."""
        return True

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round with the client's own model, if it is to be evaluated."""
        if client_round.instruction.kind != "evaluate":
            return client_round
        model = compose_model(client_round.job.received, client_round.state)
        return replace(client_round, job=replace(client_round.job, received=model))

    def second_pass(self, rounds: Sequence[ClientRound], train: Train) -> Sequence[ClientRound]:
        """Return the rounds with the clients' own models, trained, in their states."""
        pull = self.strategy.get_personal_pull()
        jobs = [create_personal_job(r.job, select_section(r.state, PERSONAL), pull) for r in rounds]
        results = train([replace(r, job=job) for r, job in zip(rounds, jobs, strict=True)])
        return [
            replace(r, state=r.state | add_label(PERSONAL, result.state) | self._choose_share(r, result.state))
            for r, result in zip(rounds, results, strict=True)
        ]

    def _choose_share(self, client_round: ClientRound, own: State) -> State:
        """Return the share of the global model in the client's mix; empty: the rule mixes nothing."""
        if not isinstance(self.strategy, MixesModels):
            return {}
        job, asked = client_round.job, client_round.instruction
        bench = self.bench.set_precision(asked.base_precision).create_sequential()
        bench.rebase(asked.base)
        rows, models = self.strategy.get_information_rows(), (job.received, job.received | own)
        shared, personal = (compute_fisher_diagonal(bench.executor, replace(job, received=m), rows) for m in models)
        share = self.strategy.choose_share(shared, personal)
        return {SHARE: torch.tensor([share], dtype=torch.float64)}
