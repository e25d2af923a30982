"""The results of a sequence of tasks, for a run's summary, and as a picture in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpeft.data.rows import Rows
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.machine.files import raise_write_errors
from fedpeft.models.scoring import Scores
from fedpeft.reporting.plots import plot_tasks
from fedpeft.reporting.records import Records
from fedpeft.reporting.task_measures import summarize_tasks

PICTURE = "tasks.svg"


def measure_tasks(
    sequence: TaskSequence | None, test: Rows, folder: Path, scores: Scores, records: Records
) -> dict[str, Any] | None:
    """Return the tasks' section of summary.json, and draw its matrix to tasks.svg; None: there is one task.

    Args:
        sequence: the tasks of the run; None: there is one.
        test: test examples, with their tasks.
        folder: the run's folder.
        scores: those of the saved adapter on the test examples.
        records: the run's record files.
    """
    if sequence is None or test.tasks is None:
        return None
    found = summarize_tasks(records.read("tasks.jsonl"), sequence, scores.correct / scores.count, test.tasks)
    with raise_write_errors(folder / PICTURE):
        plot_tasks(folder / PICTURE, found)
    return found
