"""A sequence of tasks: what is learned one after the other, and which client meets which task when.

    server, round 1 ..                task 0 | task 1 | task 2          `every` rounds each, the last one to the end
    client with a delay of d rounds      task 0 | task 1 | task 2

The delays are 0 to `late` rounds, evenly spread over the clients from a place that the seed draws: the next task is
always met by some client on time, and by some `late` rounds later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedpeft import seeds
from fedpeft.errors import ConfigError

COMPETE = ("task", "seen", "all")
"""Which classes a client's loss compares: those of its task, of all tasks that it has met, or all that there are."""


@dataclass(frozen=True)
class TaskSchedule:
    """Which task is met when.

    Attributes:
        tasks: how many there are, at least 1.
        every: rounds of a task, at least 1; 0: not known yet (`over`).
        late: the largest delay of a client, in rounds, below `every`.
    """

    tasks: int
    every: int = 0
    late: int = 0

    def adapt_to_rounds(self, rounds: int) -> TaskSchedule:
        """The schedule in a run of so many rounds: evenly, where `every` is not known.

        Raises:
            ConfigError: there are fewer rounds than the tasks need, or a client would be late by a whole task.
        """
        every = self.every or rounds // self.tasks
        if not every or every * (self.tasks - 1) >= rounds:
            needed = (self.every or 1) * (self.tasks - 1) + 1
            raise ConfigError(
                f"FP1110 {self.tasks} tasks of {self.every or 1} round(s) need at least {needed} rounds, and the run "
                f"has {rounds}; raise --rounds, or give tasks a smaller every="
            )
        if self.late >= every:
            raise ConfigError(
                f"FP1111 tasks(late={self.late}) would have clients miss whole tasks of {every} rounds; legal are 0 to "
                f"{every - 1}, or more --rounds"
            )
        return replace(self, every=every)

    def get_current(self, round_number: int) -> int:
        """The server's task in a `round_number` from 1; before round 1, the first."""
        return min(max(0, round_number - 1) // self.every, self.tasks - 1)

    def is_task_start(self, round_number: int) -> bool:
        """Whether the server's task is a new one in `round_number`."""
        return round_number == 1 or self.get_current(round_number) != self.get_current(round_number - 1)

    def is_task_end(self, round_number: int, rounds: int) -> bool:
        """Whether `round_number` is the last one of the server's task, in a run of so many."""
        return round_number == rounds or self.get_current(round_number) != self.get_current(round_number + 1)

    def draw_delay(self, client: int, seed: int) -> int:
        """How many rounds later than the server a client meets each task but the first."""
        first = int(seeds.create_generator(seed, "tasks").integers(self.late + 1))
        return (client + first) % (self.late + 1)

    def get_client_task(self, client: int, round_number: int, seed: int) -> int:
        """The task that a client is at in a `round_number`."""
        return self.get_current(round_number - self.draw_delay(client, seed))

    def select_on_time(self, clients: list[int], seed: int) -> list[int]:
        """Those of the clients that are never late."""
        return [client for client in clients if self.draw_delay(client, seed) == 0]


@dataclass(frozen=True)
class TaskSequence:
    """The tasks of a data set.

    Attributes:
        names: of the tasks, in order.
        classes: of each task, in ascending order; empty ones: there are none (language modelling).
        schedule: when they are met.
        compete: one of `COMPETE`.
    """

    names: tuple[str, ...]
    classes: tuple[tuple[int, ...], ...]
    schedule: TaskSchedule
    compete: str = "task"

    def adapt_to_rounds(self, rounds: int) -> TaskSequence:
        """In a run of so many rounds (`TaskSchedule.adapt_to_rounds`)."""
        return replace(self, schedule=self.schedule.adapt_to_rounds(rounds))

    def get_competing_classes(self, task: int) -> tuple[int, ...]:
        """The classes that the loss of a client at a `task` compares; empty: all."""
        if self.compete == "all":
            return ()
        first = task if self.compete == "task" else 0
        return tuple(sorted({c for classes in self.classes[first : task + 1] for c in classes}))


@dataclass(frozen=True, eq=False)
class ClientTasks:
    """What clients need to know of their tasks: the sequence, and the task of each training row, (rows,)."""

    sequence: TaskSequence
    of_row: NDArray[np.int64]

    def at(self, client: int, round_number: int, seed: int) -> int:
        """The task that a client is at in a round."""
        return self.sequence.schedule.get_client_task(client, round_number, seed)

    def get_current(self, rows: NDArray[np.int64], client: int, round_number: int, seed: int) -> NDArray[np.int64]:
        """Those of a client's `rows` that belong to the task that it is at."""
        current: NDArray[np.int64] = rows[self.of_row[rows] == self.at(client, round_number, seed)]
        return current
