"""The client's half of continual learning: it trains on the examples, and on the classes, of its current task."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fedpeft.clients.label_shift import mask_other_classes
from fedpeft.clients.stages import ClientRound, ClientStage, TrainedRound

from fedpeft.data.task_sequence import ClientTasks
from fedpeft.errors import DataError


class TaskStage(ClientStage):
    """The tasks of a run with `classes` classes and a `seed`; 0 classes: language modeling."""

    def __init__(self, tasks: ClientTasks, classes: int, seed: int) -> None:
        """Hold the tasks, the number of classes and the seed."""
        self.tasks, self.classes, self.seed = tasks, classes, seed

    def choose_rows(self, rows: np.ndarray, client: int, round_number: int) -> np.ndarray:
        """Return the examples of the client's current task.

        Raises:
            DataError: the client has none.
        """
        current = self.tasks.get_current(rows, client, round_number, self.seed)
        if not len(current):
            name = self.tasks.sequence.names[self.tasks.at(client, round_number, self.seed)]
            raise DataError(
                f"FP3001 client {client} has no example of the task {name} to train on; give clients more examples"
            )
        return current

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round with a loss that compares the classes of the task."""
        job = client_round.job
        if not self.classes or client_round.instruction.kind != "train":
            return client_round
        competing = self.tasks.sequence.get_competing_classes(self.tasks.at(job.client, job.round, self.seed))
        return replace(client_round, job=replace(job, offsets=mask_other_classes(competing, self.classes)))

    def finish(self, client_round: TrainedRound) -> TrainedRound:
        """Return the round without a number of used examples, which counts those of all tasks."""
        return replace(client_round, used=0)
