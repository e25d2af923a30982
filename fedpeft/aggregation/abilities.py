"""What some aggregation rules do beyond `Strategy`. Code asks for an ability, never for the name of a rule.

A rule has an ability if it defines the method; it need not inherit the protocol. Three more needs are base classes:
`GroupedStrategy` (groups of clients with a state each), `TaskStrategy` (tasks that come one after another) and
`OwnedRanks` (clients hold all ranks and train some).
"""

from __future__ import annotations

from typing import Literal, Protocol, Self, runtime_checkable

from torch import Tensor

from fedpeft.aggregation.server_optimizer import OptimizerState
from fedpeft.aggregation.strategy import Aggregate, Read, Strategy
from fedpeft.aggregation.update import Update
from fedpeft.peft.adapter import AdapterShape, Layout, State, TensorSpec

Moment = Literal["train", "begin", "end"]
"""When clients are asked: in each round before they train, when a task begins, when a task ends."""


@runtime_checkable
class AsksClients(Protocol):
    """The server asks clients for sums over the examples that they train on, beside their updates."""

    def choose_question(self, moment: Moment, layout: Layout) -> str:
        """Return the question (`fedpeft.trust.question`) to the clients at a moment; empty: none.

        The answer to a question before training is part of each client's `Update`. The sums of answers at the begin and
        the end of a task are part of the `TaskBoundary`.
        """


@runtime_checkable
class Buffered(Protocol):
    """The server steps after a number of updates, while other clients continue to train."""

    def get_buffer_size(self) -> int:
        """Return the number of updates of a step, at least 1."""


@runtime_checkable
class PersonalModel(Protocol):
    """Each client trains a model of its own beside the global one, which keeps it near."""

    def get_personal_pull(self) -> float:
        """Return lambda of the pull lambda/2 |v - w|^2 to the global model, at least 0."""


@runtime_checkable
class MixesModels(Protocol):
    """A client with a model of its own (`PersonalModel`) is evaluated with a mix of it and the global model."""

    def get_information_rows(self) -> int:
        """Return the most examples of a client that measure the information, at least 1."""

    def choose_share(self, shared: State, own: State) -> float:
        """Return the share of the global model in the mix, 0 to 1.

        Args:
            shared: diagonal of the Fisher information at the global model, by tensor, from the client's examples.
            own: the same at the client's own model.
        """


@runtime_checkable
class RankSchedule(Protocol):
    """The rule chooses in each round which ranks of the global factors a client trains.

    What a client, or a downlink, remembers of its factors has no meaning in the next round.
    """

    def choose_ranks(
        self, layout: Layout, form: AdapterShape | None, seed: int, round_number: int, client: int
    ) -> tuple[int, ...]:
        """Return the ranks for a client that trains a `form`, in its order; empty: the leading ones."""


@runtime_checkable
class PreparesStart(Protocol):
    """A client computes what it starts from."""

    def prepare_start(self, received: State, layout: Layout) -> State:
        """Return the client's start, given the tensors that it received and those that it keeps.

        Raises:
            PayloadError: the server sent what cannot be a start.
        """


@runtime_checkable
class SelectsUpdate(Protocol):
    """A client hands in something else than the change of its shared tensors. The codec comes after it."""

    def select_update(self, delta: State, received: State, trained: State, layout: Layout) -> State:
        """Return what a client hands in.

        Args:
            delta: change of the shared tensors.
            received: all tensors that the client started from.
            trained: all tensors after local training.
            layout: the client's tensors.
        """


@runtime_checkable
class FreezesTensors(Protocol):
    """Some tensors travel both ways, but local steps leave them alone."""

    def list_frozen(self, layout: Layout) -> frozenset[str]:
        """Return the names of these tensors."""


@runtime_checkable
class PullsSteps(Protocol):
    """The rule adds a term to the gradients of local steps."""

    def compute_pull(self, spec: TensorSpec, value: Tensor, received: Tensor, ranks: tuple[int, ...]) -> Tensor | None:
        """Return the term for one tensor, in its shape; None: there is none.

        Args:
            spec: description of the tensor.
            value: the tensor before the step.
            received: the tensor that the client started from.
            ranks: ranks that the client trains; empty: all that it holds.
        """


@runtime_checkable
class AdjustsRanks(Protocol):
    """The rule changes the rank of a client between rounds."""

    def choose_next_form(self, update: Update, layout: Layout) -> AdapterShape | None:
        """Return the adapter shape that a client has from the next round on."""


@runtime_checkable
class CountsClients(Protocol):
    """The global state is a mean over all clients of a run, whoever takes part. A server optimizer would spoil it."""

    def set_client_count(self, clients: int) -> Self:
        """Return the rule for a run with so many clients.

        Raises:
            ConfigError: the rule's settings name another number.
        """


@runtime_checkable
class RemembersRounds(Protocol):
    """A rule of rounds that keeps tensors from one round to the next."""

    def aggregate_with_memory(
        self, state: State, layout: Layout, read: Read, round_number: int, seed: int, memory: OptimizerState
    ) -> tuple[Aggregate, OptimizerState]:
        """Aggregate one round as `RoundStrategy.aggregate` does, and return the next memory; empty at first."""


def choose_ranks(
    strategy: Strategy, layout: Layout, form: AdapterShape | None, seed: int, round_number: int, client: int
) -> tuple[int, ...]:
    """Return the ranks that a client trains, in its order; empty: the leading ones."""
    if not isinstance(strategy, RankSchedule):
        return ()
    return strategy.choose_ranks(layout, form, seed, round_number, client)
