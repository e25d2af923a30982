"""The client's half of drift corrections: their part in training, and the states that they keep."""

from __future__ import annotations

from dataclasses import replace

from fedpeft.clients.drift import Drift, flatten_states, unflatten_states
from fedpeft.clients.stages import ClientRound, ClientStage, TrainedRound
from fedpeft.clients.store import add_label, select_section

from fedpeft.communication.codec import Codec
from fedpeft.communication.messages import Instruction

LABEL = "drift"
"""Section of the client's state that holds the corrections' states."""


class DriftStage(ClientStage):
    """The corrections of a run; `codec` encodes what travels."""

    def __init__(self, drift: Drift, codec: Codec) -> None:
        """Hold the corrections and the codec."""
        self.drift, self.codec = drift, codec

    def keeps(self, instruction: Instruction) -> bool:
        """Return whether a correction keeps a state with the client."""
        return self.drift.keeps

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round with its corrections, bound to the server's and the client's states.

        Raises:
            PayloadError: the server's states do not fit these corrections.
        """
        job, shapes = client_round.job, client_round.layout.shapes
        shared = {name: shapes[name] for name in job.trained - client_round.private}
        states = self.drift.decode(client_round.instruction.correction, shared)
        acting = self.drift.select_corrections(states, unflatten_states(select_section(client_round.state, LABEL)))
        return replace(client_round, job=replace(job, corrections=acting))

    def finish(self, client_round: TrainedRound) -> TrainedRound:
        """Return the round with the client's next states, and their changes for the server."""
        states, changes = self.drift.after(client_round.job, client_round.result)
        state = client_round.state | add_label(LABEL, flatten_states(states))
        return replace(client_round, state=state, correction=self.drift.encode(changes, self.codec))
