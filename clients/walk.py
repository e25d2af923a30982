"""A walk: each round continues in a client's examples where its last round stopped, so that all take part."""

from __future__ import annotations

from dataclasses import replace

import torch
from fedpeft.clients.stages import ClientRound, ClientStage, TrainedRound
from fedpeft.clients.workbench import Workbench

from fedpeft.communication.messages import Instruction

STEPS = "walk/steps"
"""Name, in a client's state, of the number of steps that it has made."""


class WalkStage(ClientStage):
    """Counts a client's steps over all rounds."""

    def __init__(self, bench: Workbench) -> None:
        """Hold the workbench, whose plan and examples the count depends on."""
        self.bench = bench

    def keeps(self, instruction: Instruction) -> bool:
        """Return whether local training walks."""
        return self.bench.plan.training.replace_steps(instruction.steps).walks

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round with the number of earlier steps, also if this round itself does not walk."""
        before = client_round.state.get(STEPS)
        if before is None and not client_round.job.training.walks:
            return client_round
        walked = 0 if before is None else int(before)
        return replace(client_round, job=replace(client_round.job, walked=walked))

    def finish(self, client_round: TrainedRound) -> TrainedRound:
        """Return the round with the number of steps so far, and of the distinct examples that they used."""
        job = client_round.job
        if job.walked is None:
            return client_round
        steps = {STEPS: torch.tensor(job.walked + client_round.result.steps)}
        return replace(
            client_round, state=client_round.state | steps, used=job.count_used_rows(self.bench.examples.lengths)
        )
