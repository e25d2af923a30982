"""What both opponents share: examples, model and start from a simulation's setup, evaluation, and lines of rounds.

The validation accuracy of every side comes from the same code, that of fedpeft's workers. The workers wait while a side
trains, and the time of evaluations does not count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from experiments.speed.workload import SilentObserver, Workload
from experiments.to_accuracy.settings import Order
from fedpeft.data.partition import Partition
from fedpeft.peft.adapter import State
from fedpeft.rounds.clock import Clock
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig


class Bench:
    """The workload of a run, its evaluation and its record; a context manager."""

    def __init__(self, order: Order) -> None:
        """Load the examples and the model."""
        config = RunConfig(**order.fields)
        self.folder = Path(order.folder)
        self._simulation = Simulation(config, self.folder, SilentObserver())
        rows, work, setup = self._simulation.rows, self._simulation.workers.work, self._simulation.setup
        workers = self._simulation.workers.machine.workers
        self.load = Workload(config, work, cast(Partition, rows.partition), setup.start, workers)
        self.cohort = setup.compute_cohort_size(self._simulation.clients)
        self.training_seconds = 0.0
        """Seconds of all rounds so far."""

    def __enter__(self) -> Bench:
        """Return this bench."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers of the evaluation."""
        self._simulation.close()

    def record(self, number: int, state: State, clock: Clock, uplink_bytes: int = 0, downlink_bytes: int = 0) -> None:
        """Evaluate the state after round `number` and write its line, with the names of fedpeft's own lines."""
        clock.note_step()
        accuracy = self._simulation.workers.evaluate(state, 0).accuracy
        line = {
            "round": number,
            "accuracy": accuracy,
            "uplink_bytes": uplink_bytes,
            "downlink_bytes": downlink_bytes,
            "training_seconds": clock.training_seconds,
            "seconds": clock.seconds,
        }
        if number:  # what precedes round 1 is no training, however long the machine takes for it
            self.training_seconds += clock.training_seconds
        with (self.folder / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
