"""Rules that divide clients into groups and send each group a state of its own.

The server finds the groups and keeps what it has learned of them in checkpoints (`ServerState.learned`). A client
receives a state in the layout's shapes, as with any rule. It learns neither its group nor the group's other members.

The server finds groups in single clients' updates. `fedpeft.wiring.checks` refuses such rules for secure sums and for
privacy mechanisms.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.strategy import Aggregate, Read, RoundStrategy
from fedpeft.aggregation.update import Update
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class GroupedRound:
    """A round as a rule of groups sees it.

    Attributes:
        round: counted from 1.
        state: the global state.
        learned: tensors that the rule keeps.
        layout: the trainable tensors.
        updates: yields all updates in the order of client ids, decoded one at a time; each call starts anew.
    """

    round: int
    state: State
    learned: State
    layout: Layout
    updates: Callable[[], Iterator[Update]]


class GroupedStrategy(RoundStrategy):
    """A rule that divides clients into groups."""

    arrives_whole: ClassVar[bool] = False

    @abstractmethod
    def find_group(self, client: int, learned: State) -> str:
        """Return the name of a client's group, given the tensors that the rule keeps; never empty."""

    @abstractmethod
    def get_group_state(self, group: str, state: State, learned: State, layout: Layout) -> State:
        """Return the state of a group in the layout's shapes; it may share memory with the global `state`."""

    @abstractmethod
    def regroup(self, received: GroupedRound) -> tuple[State, State]:
        """Return the next global state, which newcomers may be sent, and the tensors that the rule keeps.

        Raises:
            ConfigError: no updates.
        """

    def aggregate_groups(self, received: GroupedRound) -> tuple[State, State]:
        """Call `regroup` and copy the state, so that it shares no memory with the round's."""
        state, learned = self.regroup(received)
        return {name: tensor.clone() for name, tensor in state.items()}, learned

    def aggregate(self, state: State, layout: Layout, read: Read, round_number: int, seed: int) -> Aggregate:
        """Aggregate the first round, before which the rule keeps nothing."""
        return Aggregate(
            self.aggregate_groups(read_received_updates(round_number, state, {}, layout, read, self))[0], {}
        )


def read_received_updates(
    round_number: int, state: State, learned: State, layout: Layout, read: Read, strategy: GroupedStrategy
) -> GroupedRound:
    """Return a round that reads the waiting updates."""
    names = tuple(
        n for n in layout.names if n in strategy.list_trained(layout, round_number) - strategy.list_private(layout)
    )
    return GroupedRound(round_number, state, learned, layout, lambda: iter(read(names)))
