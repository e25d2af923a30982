"""The measures of a sequence of tasks: the task x time matrix, and those of continual learning.

With a_{t,i} the accuracy on task i after task t, of T tasks, and b_i that of the start:

    average             mean_i a_{T,i}
    forgetting          mean_{i<T} ( max_{i<=t<T} a_{t,i} - a_{T,i} )     (Chaudhry et al., arXiv 1801.10112)
    backward transfer   mean_{i<T} ( a_{T,i} - a_{i,i} )                  (Lopez-Paz and Ranzato, arXiv 1706.08840)
    forward transfer    mean_{i>1} ( a_{i-1,i} - b_i )                    (the same)

Deviation: the maximum of Chaudhry et al. also covers the times before task i. A pretrained model can be best then, and
what it loses when it learns task i is not forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedpeft.data.task_sequence import TaskSequence

KINDS = ("accuracy", "accuracy_known_task")
"""Types of accuracy: among the classes of all tasks, and among those of the example's own task alone."""


def compute_transfer(matrix: Sequence[Sequence[float]], start: Sequence[float]) -> dict[str, float]:
    """Compute the measures of a matrix (T, T), whose rows are times, and the start (T,), for at least two tasks."""
    a, b = np.asarray(matrix, np.float64), np.asarray(start, np.float64)
    tasks = len(b)
    best = [a[i : tasks - 1, i].max() for i in range(tasks - 1)]
    return {
        "average": float(a[-1].mean()),
        "forgetting": float(np.mean([best[i] - a[-1, i] for i in range(tasks - 1)])),
        "backward_transfer": float(np.mean([a[-1, i] - a[i, i] for i in range(tasks - 1)])),
        "forward_transfer": float(np.mean([a[i - 1, i] - b[i] for i in range(1, tasks)])),
    }


def summarize_tasks(
    lines: Sequence[Mapping[str, Any]], sequence: TaskSequence, correct: np.ndarray, tasks: np.ndarray
) -> dict[str, Any]:
    """Return the section `tasks` of summary.json.

    Args:
        lines: lines of tasks.jsonl: the start, and after each task.
        sequence: the sequence of the tasks.
        correct: whether the saved adapter is right about each test example, or the share of its tokens, (rows,).
        tasks: task of each test example, (rows,).
    """
    start, *times = lines
    found: dict[str, Any] = {
        "names": list(sequence.names),
        "rounds": [line["round"] for line in times],
        "late": sequence.schedule.late,
        "loss": [line["loss"] for line in times],
        "test_accuracy": [float(correct[tasks == task].mean()) for task in range(len(sequence.names))],
    }
    for kind in KINDS:
        if kind not in start:
            continue
        matrix = [line[kind] for line in times]
        found[kind] = {"start": start[kind], "matrix": matrix}
        if len(times) == len(sequence.names):
            found[kind] |= compute_transfer(matrix, start[kind])
    return found
