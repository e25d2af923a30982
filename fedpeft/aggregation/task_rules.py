"""Rules for tasks that come one after another.

Such a rule has the schedule: which client is at which task. When a task begins or ends, the rule may ask the task's
clients for sums over their examples and change the global state. The server keeps the rule's memory of earlier tasks in
checkpoints.

`TaskRanks` gives each task ranks of its own: the global rank is the clients' rank times the number of tasks. A client
trains and sends the ranks of its task. The ranks of earlier tasks stay part of the model and do not change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.abilities import Moment
from fedpeft.aggregation.factors import get_lora_form
from fedpeft.aggregation.owned_ranks import OwnedRanks
from fedpeft.aggregation.strategy import LinearStrategy, Strategy
from fedpeft.data.task_sequence import TaskSchedule
from fedpeft.errors import ConfigError
from fedpeft.parts import name_of, setting
from fedpeft.peft.adapter import AdapterShape, Layout, State


@dataclass(frozen=True)
class TaskBoundary:
    """The begin or the end of a task, as a rule sees it.

    Attributes:
        moment: "begin" or "end".
        task: number of the task, from 0.
        classes: classes of the task; empty: it has none.
        layout: the trainable tensors.
        state: the global state.
        memory: tensors that the rule has kept so far, by name; empty at first.
        sums: sums of the clients' answers (`AsksClients`), fp64; empty: nothing was asked.
    """

    moment: Moment

    task: int
    classes: tuple[int, ...]
    layout: Layout
    state: State
    memory: State
    sums: State


@dataclass(frozen=True, kw_only=True)
class TaskStrategy(LinearStrategy):
    """A linear rule that depends on the tasks. The run fills in its settings."""

    tasks: int = setting(0, "number of tasks; 0: that of the dataset", low=0)
    every: int = setting(0, "rounds of a task; 0: those of the dataset", low=0)
    late: int = setting(0, "largest delay of a client in rounds; 0: that of the dataset", low=0)

    makes_head: ClassVar[bool] = False
    """Whether the rule makes the head at the begin of each task, so that the run needs no start of the head."""

    @property
    def schedule(self) -> TaskSchedule:
        """Schedule of the clients' tasks."""
        return TaskSchedule(max(1, self.tasks), max(1, self.every), self.late)

    def cross_boundary(self, boundary: TaskBoundary) -> tuple[State, State]:
        """Return the next global state, and the tensors that the rule keeps; by default leave both as they are."""
        return boundary.state, boundary.memory


@dataclass(frozen=True)
class TaskRanks(OwnedRanks, TaskStrategy):
    """A rule with separate ranks for each task."""

    mixed_ranks: ClassVar[bool] = False

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse different ranks or alphas, since all clients of a task have the same ranks.

        Raises:
            ConfigError: clients have different ranks or alphas, or the PEFT method has no factors.
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

    def get_whole_form(self, form: AdapterShape | None) -> AdapterShape | None:
        """Return the form of the global factors: the ranks of all tasks, at the scale of a task's `form`."""
        return None if form is None else AdapterShape(form.rank * self.schedule.tasks, form.alpha * self.schedule.tasks)

    def get_task_form(self, layout: Layout) -> AdapterShape:
        """Return the form of one task's factors, which a client trains and sends."""
        return layout.get_form(get_lora_form(layout).rank // self.schedule.tasks)

    def get_task_ranks(self, layout: Layout, task: int) -> tuple[int, ...]:
        """Return the ranks of a task, counted from 0."""
        each = get_lora_form(layout).rank // self.schedule.tasks
        return tuple(range(task * each, (task + 1) * each))

    def choose_ranks(
        self, layout: Layout, form: AdapterShape | None, seed: int, round_number: int, client: int
    ) -> tuple[int, ...]:
        """Return the ranks of the client's task in a round."""
        if form is None or form == layout.form:
            return ()
        return self.get_task_ranks(layout, self.schedule.get_client_task(client, round_number, seed))


def get_client_form(strategy: Strategy, layout: Layout) -> AdapterShape | None:
    """Return the largest form in which a client may send an update: the layout's, or that of one task."""
    return strategy.get_task_form(layout) if isinstance(strategy, TaskRanks) and layout.form else layout.form
