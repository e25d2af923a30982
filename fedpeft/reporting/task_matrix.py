"""The results of a sequence of tasks, for a run's summary, and as a picture in its folder."""

from __future__ import annotations

from typing import Any

from fedpeft.machine.files import raise_write_errors
from fedpeft.models.scoring import Scores
from fedpeft.reporting.plots import plot_tasks
from fedpeft.reporting.records import Records
from fedpeft.reporting.task_measures import summarize_tasks
from fedpeft.simulation.simulation import Simulation

PICTURE = "tasks.svg"


def measure_tasks(simulation: Simulation, scores: Scores, records: Records) -> dict[str, Any] | None:
    """Return the tasks' section of summary.json, and draw its matrix to tasks.svg; None: there is one task.

    `scores` are those of the saved adapter on the test set.
    """
    sequence, test = simulation.setup.facts.tasks, simulation.rows.dataset.test.tasks
    if sequence is None or test is None:
        return None
    found = summarize_tasks(records.read("tasks.jsonl"), sequence, scores.correct / scores.count, test)
    with raise_write_errors(simulation.folder / PICTURE):
        plot_tasks(simulation.folder / PICTURE, found)
    return found
