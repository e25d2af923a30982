"""Tensors that stay with their client, such as the factors B of FedSA-LoRA."""

from __future__ import annotations

from dataclasses import replace

from fedpeft.clients.stages import ClientRound, ClientStage, TrainedRound
from fedpeft.clients.store import add_label, select_section

from fedpeft.communication.decoding import check_whole
from fedpeft.communication.messages import Instruction

LABEL = "private"
"""Section of the client's state that holds these tensors."""


class OwnTensorsStage(ClientStage):
    """Completes what arrived with what stayed on the client, and keeps the latter out of the update."""

    def keeps(self, instruction: Instruction) -> bool:
        """Return whether some tensors stay on the client."""
        return bool(instruction.private)

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round with all tensors of the client's layout.

        Raises:
            PayloadError: one is missing.
        """
        received = client_round.job.received | select_section(client_round.state, LABEL)
        job = replace(client_round.job, received=check_whole(received, client_round.layout.shapes))
        return replace(client_round, job=job)

    def finish(self, client_round: TrainedRound) -> TrainedRound:
        """Return the round with the trained tensors that stay in the client's state."""
        private = client_round.private
        own = {name: tensor for name, tensor in client_round.result.state.items() if name in private}
        return replace(client_round, state=client_round.state | add_label(LABEL, own))
