"""What a feature may do in a client's half of a round: the base class of all stages.

A feature overrides the methods that it needs and holds its whole part of the client in one module. `begin` calls the
stages in the order that `fedpeft.clients.features` fixes, `finish` in the reverse order: the first stage sees what
all others make of an update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.communication.messages import Instruction
from fedpeft.peft.adapter import Layout, State

if TYPE_CHECKING:
    from fedpeft.clients.executor import Job, Trained


def hand_in(update: State) -> State:
    """Return what an honest client hands in: its update."""
    return update


@dataclass(frozen=True)
class ClientRound:
    """One client's part in one round, before training.

    Attributes:
        instruction: what the server asks.
        layout: the tensors that the client holds, in its own adapter shape.
        job: local training.
        held_out: indices of the examples that the client is evaluated on, (examples,).
        state: what the client keeps between rounds, as sections by label (`fedpeft.clients.store`).
    """

    instruction: Instruction
    layout: Layout
    job: Job
    held_out: np.ndarray
    state: State

    @property
    def private(self) -> frozenset[str]:
        """Names of the tensors that stay with the client."""
        return frozenset(self.layout.names[i] for i in self.instruction.private)

    def exchanged(self, state: State) -> State:
        """Return the tensors of `state` that do not stay with the client."""
        private = self.private
        return {name: tensor for name, tensor in state.items() if name not in private}


@dataclass(frozen=True)
class TrainedRound(ClientRound):
    """One client's part in one round, after training.

    Attributes:
        result: outcome of local training.
        update: the tensors that the client contributes.
        correction: encoded changes of the states of its drift corrections.
        used: distinct examples that the client has trained on; 0: it does not tell.
        hand_in: returns what the client hands in, given the protected update.
    """

    result: Trained
    update: State
    correction: bytes = b""
    used: int = 0
    hand_in: Callable[[State], State] = hand_in


Train = Callable[[Sequence[ClientRound]], list["Trained"]]
"""Trains clients; the results are in their order."""


class ClientStage:
    """A feature of the client's half; every method does nothing by default."""

    def choose_rows(self, rows: np.ndarray, client: int, round_number: int) -> np.ndarray:
        """Return the examples that a client trains on in a round, as indices, given those that it may train on.

        Raises:
            DataError: there are none.
        """
        return rows

    def keeps(self, instruction: Instruction) -> bool:
        """Return whether the client has a state of its own from round to round."""
        return False

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round as the client trains in it. Nothing is trained or charged yet.

        Raises:
            PayloadError, PrivacyError: the server asks for what the client refuses.
        """
        return client_round

    def second_pass(self, rounds: Sequence[ClientRound], train: Train) -> Sequence[ClientRound]:
        """Return the rounds after another training beside that of the global model, which is over."""
        return rounds

    def finish(self, client_round: TrainedRound) -> TrainedRound:
        """Return the round with the feature's part of the update, of the report and of the client's state."""
        return client_round
