"""Rules for tasks that come one after the other.

Such a rule knows the schedule, and so which client is at which task. Where a task begins, and where it ends, it may
have the clients that are at it asked for sums over their rows, and make another global state of them; what it must
remember of earlier tasks it keeps with the server, in checkpoints.

`TaskRanks` gives each task ranks of its own: the global factors have as many times the clients' rank as there are
tasks. A client trains, and sends, those of the task that it is at; the earlier ones go on acting, and stand still.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from fedpeft.aggregation.factors import get_lora_form
from fedpeft.aggregation.owned_ranks import OwnedRanks
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.data.task_sequence import TaskSchedule
from fedpeft.errors import ConfigError
from fedpeft.parts import name_of, setting
from fedpeft.peft.adapter import AdapterShape, Layout, State

Moment = Literal["begin", "end"]


@dataclass(frozen=True)
class Turn:
    """What a rule knows where a task begins or ends.

    Attributes:
        task: which, from 0.
        classes: of it; empty: there are none.
        layout: of the trainable tensors.
        state: the global one.
        memory: what the rule has kept so far, by name; empty at first.
        sums: what the clients have answered (`TaskStrategy.asked`), in fp64; empty: nothing was asked.
    """

    task: int
    classes: tuple[int, ...]
    layout: Layout
    state: State
    memory: State
    sums: State


@dataclass(frozen=True, kw_only=True)
class TaskStrategy(LinearStrategy):
    """A linear rule that goes by tasks. Its settings are filled in by the run."""

    tasks: int = setting(0, "how many there are; 0: as the data set says", low=0)
    every: int = setting(0, "rounds of a task; 0: as the data set says", low=0)
    late: int = setting(0, "the largest delay of a client in rounds, as the data set says", low=0)

    goes_by_tasks: ClassVar[bool] = True

    @property
    def schedule(self) -> TaskSchedule:
        """Which client is at which task when."""
        return TaskSchedule(max(1, self.tasks), max(1, self.every), self.late)

    def asked(self, moment: Moment, layout: Layout) -> str:
        """The question (`fedpeft.trust.question`) to the clients that are at a task; empty, the default: none."""
        return ""

    def turned(self, moment: Moment, turn: Turn) -> tuple[State, State]:
        """The next global state, and what the rule keeps; by default both as they are."""
        return turn.state, turn.memory


@dataclass(frozen=True)
class TaskRanks(OwnedRanks, TaskStrategy):
    """Ranks of its own for each task."""

    mixed_ranks: ClassVar[bool] = False

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse clients of several ranks: those of a task are the same at all of them.

        Raises:
            ConfigError: there are such, or the PEFT method has no factors.
        """
        if not layout.pairs:
            raise ConfigError(
                f"FP1026 {name_of(type(self))} is defined for LoRA factors only; use the peft method lora"
            )
        whole, tasks = get_lora_form(layout), self.schedule.tasks
        for form in set(forms) - {None}:
            if form is not None and (form.rank * tasks != whole.rank or not math.isclose(form.scale, whole.scale)):
                raise ConfigError(
                    f"FP1027 {name_of(type(self))} gives each task the same ranks at all clients; leave ranks and "
                    "alphas out"
                )

    def whole_form(self, form: AdapterShape | None) -> AdapterShape | None:
        """As many times the ranks as there are tasks, at the same scale."""
        return None if form is None else AdapterShape(form.rank * self.schedule.tasks, form.alpha * self.schedule.tasks)

    def get_task_ranks(self, layout: Layout, task: int) -> tuple[int, ...]:
        """The ranks of a task."""
        each = get_lora_form(layout).rank // self.schedule.tasks
        return tuple(range(task * each, (task + 1) * each))

    def ranks(
        self, layout: Layout, form: AdapterShape | None, seed: int, round_number: int, client: int
    ) -> tuple[int, ...]:
        """Those of the task that the client is at."""
        if form is None or form == layout.form:
            return ()
        return self.get_task_ranks(layout, self.schedule.get_client_task(client, round_number, seed))
