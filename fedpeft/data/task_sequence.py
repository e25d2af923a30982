"""Schedule of a sequence of tasks: which client works on which task in which round.

    server, round 1 ..                task 0 | task 1 | task 2          `every` rounds each, the last one to the end
    client with a delay of d rounds      task 0 | task 1 | task 2

The delays are 0 to `late` rounds, evenly spread over the clients; the seed draws where the spread starts. So some
client always reaches the next task on schedule, and some client `late` rounds later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import ConfigError
from fedpeft.machine import seeds

COMPETE = ("task", "seen", "all")
"""Classes that a client's loss compares: those of its task, of all tasks so far, or of all tasks."""


@dataclass(frozen=True)
class TaskSchedule:
    """Rounds of each task.

    Attributes:
        tasks: number of tasks, at least 1.
        every: rounds of a task, at least 1; 0: not known yet (`adapt_to_rounds`).
        late: the largest delay of a client, in rounds, below `every`.
    """

    tasks: int
    every: int = 0
    late: int = 0

    def adapt_to_rounds(self, rounds: int) -> TaskSchedule:
        """Return the schedule for a run of `rounds` rounds; tasks are equally long if `every` is unknown.

        Raises:
            ConfigError: there are fewer rounds than the tasks need, or a client would be late by a whole task.
        """
        every = self.every or rounds // self.tasks
        if not every or every * (self.tasks - 1) >= rounds:
            needed = (self.every or 1) * (self.tasks - 1) + 1
            raise ConfigError(
                f"FP1110 {self.tasks} tasks of {self.every or 1} round(s) need at least {needed} rounds, but the run "
                f"has {rounds}; raise --rounds, or set a smaller every= in tasks"
            )
        if self.late >= every:
            raise ConfigError(
                f"FP1111 tasks(late={self.late}) makes clients miss whole tasks of {every} rounds; legal are 0 to "
                f"{every - 1}, or give more --rounds"
            )
        return replace(self, every=every)

    def get_current(self, round_number: int) -> int:
        """Return the server's task in a round, counted from 1; before round 1, the first task."""
        return min(max(0, round_number - 1) // self.every, self.tasks - 1)

    def is_task_start(self, round_number: int) -> bool:
        """Return whether the server starts a new task in this round."""
        return round_number == 1 or self.get_current(round_number) != self.get_current(round_number - 1)

    def is_task_end(self, round_number: int, rounds: int) -> bool:
        """Return whether this round is the last one of the server's task, in a run of `rounds` rounds."""
        return round_number == rounds or self.get_current(round_number) != self.get_current(round_number + 1)

    def draw_delay(self, client: int, seed: int) -> int:
        """Return by how many rounds a client reaches each task but the first later than the server."""
        first = int(seeds.create_generator(seed, "tasks").integers(self.late + 1))
        return (client + first) % (self.late + 1)

    def get_client_task(self, client: int, round_number: int, seed: int) -> int:
        """Return the task of a client in a round."""
        return self.get_current(round_number - self.draw_delay(client, seed))

    def select_on_time(self, clients: list[int], seed: int) -> list[int]:
        """Return the clients that are never late."""
        return [client for client in clients if self.draw_delay(client, seed) == 0]


@dataclass(frozen=True)
class TaskSequence:
    """Tasks of a dataset.

    Attributes:
        names: names of the tasks, in order.
        classes: the classes of each task, ascending; empty for language modeling.
        schedule: the rounds of each task.
        compete: one of `COMPETE`.
    """

    names: tuple[str, ...]
    classes: tuple[tuple[int, ...], ...]
    schedule: TaskSchedule
    compete: str = "task"

    def adapt_to_rounds(self, rounds: int) -> TaskSequence:
        """Return the sequence for a run of `rounds` rounds (`TaskSchedule.adapt_to_rounds`)."""
        return replace(self, schedule=self.schedule.adapt_to_rounds(rounds))

    @property
    def is_told_by_class(self) -> bool:
        """Whether an example's class tells its task: each class belongs to one task."""
        together = [c for classes in self.classes for c in classes]
        return bool(together) and len(together) == len(set(together))

    def find_tasks(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the task of each example by its class, (rows,); each class must belong to one task."""
        of_class = {c: task for task, classes in enumerate(self.classes) for c in classes}
        return np.array([of_class[int(label)] for label in labels], np.int64)

    def get_competing_classes(self, task: int) -> tuple[int, ...]:
        """Return the classes that a client's loss compares in a task; empty: all."""
        if self.compete == "all":
            return ()
        first = task if self.compete == "task" else 0
        return tuple(sorted({c for classes in self.classes[first : task + 1] for c in classes}))


@dataclass(frozen=True, eq=False)
class ClientTasks:
    """Tasks for clients: the sequence, and the task of each training example, (rows,)."""

    sequence: TaskSequence
    of_row: NDArray[np.int64]

    def at(self, client: int, round_number: int, seed: int) -> int:
        """Return the task of a client in a round."""
        return self.sequence.schedule.get_client_task(client, round_number, seed)

    def get_current(self, rows: NDArray[np.int64], client: int, round_number: int, seed: int) -> NDArray[np.int64]:
        """Return those of a client's `rows` that belong to its current task."""
        current: NDArray[np.int64] = rows[self.of_row[rows] == self.at(client, round_number, seed)]
        return current
