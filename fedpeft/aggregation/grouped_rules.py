"""Rules under which clients fall into groups, each of which is sent a state of its own.

The server finds the groups, and what it knows of them it keeps (`Progress.learned`), in checkpoints. A client is told
no group: it is sent a state in the layout's shapes, as under any rule, and so a simulation, a cluster and real machines
need nothing more. It learns neither who else is in its group nor how many are.

Groups are found in what single clients send. Where only a sum may be seen, or a mechanism speaks for what the server
releases, such rules are refused (`fedpeft.wiring.checks`).
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
class Heard:
    """A round as a rule of groups sees it.

    Attributes:
        round: counted from 1.
        state: the global one.
        learned: what the rule keeps.
        layout: of the trainable tensors.
        updates: goes through all updates, decoded one at a time, in the order of client ids; at each call anew.
    """

    round: int
    state: State
    learned: State
    layout: Layout
    updates: Callable[[], Iterator[Update]]


class GroupedStrategy(RoundStrategy):
    """A rule of groups."""

    groups: ClassVar[bool] = True
    arrives_whole: ClassVar[bool] = False

    @abstractmethod
    def group(self, client: int, learned: State) -> str:
        """What the state is called that a client is sent, given what the rule keeps; never empty."""

    @abstractmethod
    def of_group(self, group: str, state: State, learned: State, layout: Layout) -> State:
        """That state, in the layout's shapes, in memory of its own or of the global `state`'s."""

    @abstractmethod
    def regrouped(self, heard: Heard) -> tuple[State, State]:
        """After a round, the next global state, which newcomers may be sent, and what the rule keeps.

        Raises:
            ConfigError: no updates.
        """

    def aggregate_groups(self, heard: Heard) -> tuple[State, State]:
        """`regrouped`, in memory that is not the round's."""
        state, learned = self.regrouped(heard)
        return {name: tensor.clone() for name, tensor in state.items()}, learned

    def aggregate(self, state: State, layout: Layout, read: Read, round_number: int, seed: int) -> Aggregate:
        """The first round of all, of which nothing is known before."""
        return Aggregate(
            self.aggregate_groups(read_received_updates(round_number, state, {}, layout, read, self))[0], {}
        )


def read_received_updates(
    round_number: int, state: State, learned: State, layout: Layout, read: Read, strategy: GroupedStrategy
) -> Heard:
    """A round whose updates are read from where they wait."""
    names = tuple(n for n in layout.names if n in strategy.trained(layout, round_number) - strategy.private(layout))
    return Heard(round_number, state, learned, layout, lambda: iter(read(names)))
