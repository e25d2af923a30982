"""What summary.json says of runs whose rows have tasks one after the other, labels of words, or captions."""

from __future__ import annotations

from typing import Any

from fedpeft.models.scoring import Scores
from fedpeft.run.records import Records
from fedpeft.simulation.captions import captions_of
from fedpeft.simulation.simulation import Simulation
from fedpeft.simulation.span_scores import spans_of
from fedpeft.simulation.task_matrix import tasks_of


def of_rows(simulation: Simulation, scores: Scores, records: Records) -> dict[str, Any]:
    """By the keys of the summary; None where rows have none. `scores` are the saved adapter's on the test rows."""
    return {
        "tasks": tasks_of(simulation, scores, records),
        "spans": spans_of(simulation),
        "captions": captions_of(simulation, records),
    }
