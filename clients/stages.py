"""What a feature may do in a client's half of a round: the base class of all stages.

A feature overrides the methods that it needs and holds its whole part of the client in one module. `begin` calls the
stages in the order that `fedpeft.clients.features` fixes, `finish` in the reverse order: the first stage sees what all
others make of an update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn, Protocol, runtime_checkable

import numpy as np

from fedpeft.communication.messages import Instruction, Report
from fedpeft.errors import PrivacyError
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

    def select_exchanged(self, state: State) -> State:
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
        used: distinct examples that the client has trained on; 0: it does not report them.
        hand_in: returns what the client hands in, given the protected update.
    """

    result: Trained
    update: State
    correction: bytes = b""
    used: int = 0
    hand_in: Callable[[State], State] = hand_in


Train = Callable[[Sequence[ClientRound]], list["Trained"]]
"""Trains clients; the results are in their order."""

Answer = Callable[[Sequence[Instruction]], list[Report]]
"""Answers instructions of one kind, in their order."""


class ClientStage:
    """A feature of the client's half; every method does nothing by default."""

    def keeps(self, instruction: Instruction) -> bool:
        """Return whether the client has a state of its own from round to round."""
        return False

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round as the client trains in it. Nothing is trained or charged yet.

        Raises:
            PayloadError, PrivacyError: the server asks for what the client refuses.
        """
        return client_round

    def finish(self, client_round: TrainedRound) -> TrainedRound:
        """Return the round with the feature's part of the update, of the report and of the client's state."""
        return client_round


@runtime_checkable
class ChoosesRows(Protocol):
    """A stage that decides which examples a client trains on."""

    def choose_rows(self, rows: np.ndarray, client: int, round_number: int) -> np.ndarray:
        """Return the examples that a client trains on in a round, as indices, given those that it may train on.

        Raises:
            DataError: there are none.
        """


@runtime_checkable
class TrainsAgain(Protocol):
    """A stage that trains in a second pass."""

    def second_pass(self, rounds: Sequence[ClientRound], train: Train) -> Sequence[ClientRound]:
        """Return the rounds after another training beside that of the global model, which is over."""


class Reports(ClientStage, ABC):
    """How a client answers the server: the last stage, of which a client has exactly one."""

    parallel: ClassVar[bool] = True
    """Whether several clients' updates may be reported at once, in threads."""

    @property
    def answers(self) -> Mapping[str, Answer]:
        """The handlers of instructions that only such clients accept, by kind; by default none."""
        return {}

    @property
    def uses_newest_state(self) -> bool:
        """Whether a client goes on from its newest state, and not from the one that the server names."""
        return False

    def choose_rate(self, own: float) -> float:
        """Return the probability with which an example joins a round, given the client's own one."""
        return own

    def replay(self, instruction: Instruction) -> Report | None:
        """Return the answer that the client has given to the very same instruction; None: it gave none."""
        return None

    @abstractmethod
    def check(self, instruction: Instruction) -> None:
        """Refuse what such clients do not answer, before any work.

        Raises:
            PrivacyError: the server asks for an answer in another form.
        """

    @abstractmethod
    def report_statistics(self, instruction: Instruction, rows: int, measure: Callable[[], State]) -> Report:
        """Return the report before round 1.

        Args:
            instruction: what the server asks.
            rows: number of the client's examples.
            measure: returns the head's statistics of these examples.
        """

    @abstractmethod
    def report_evaluation(self, client_round: ClientRound) -> Report:
        """Return the report on the client's held-out examples."""

    @abstractmethod
    def report_update(self, client_round: TrainedRound, seconds: float, keep: Callable[[State], None]) -> Report:
        """Return the report on a training that took `seconds`; `keep` stores the client's state before it leaves."""


def is_summand(instruction: Instruction) -> bool:
    """Return whether clients in a secure sum answer an instruction with what is to be summed."""
    return instruction.kind in ("prepare", "train") or bool(instruction.asks)


def refuse_form(instruction: Instruction, how: str) -> NoReturn:
    """Refuse an instruction whose answer would have another form than the client's settings allow.

    `how` names the form in the error.

    Raises:
        PrivacyError: always.
    """
    raise PrivacyError(f"FP7002 the server asks a client to {instruction.kind} {how}, which its settings do not allow")
