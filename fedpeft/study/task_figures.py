"""The figure of continual learning: for every method, a matrix with the accuracy on each task after each task."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedpeft.study.drawing import choose_columns, draw_panels, wrap_title
from fedpeft.study.results import Result
from fedpeft.study.sections import Method, Section

NOTE = """Rows are tasks, columns are times: the start, then after each task's last round. Accuracy (%) on validation
examples, the mean over seeds. Above: the classes of all tasks compete. Below: the example's task is known, and only its
classes compete."""

HEIGHT = 2.2
"""Height of a panel in inches."""

KINDS = {"accuracy": "", "accuracy_known_task": ", task known"}
"""Types of accuracy, with what the title of a panel adds to the method."""


def get_tasks(run: Result) -> Mapping[str, Any]:
    """Return the `tasks` section of summary.json; empty for a single task."""
    return (run.summary or {}).get("tasks") or {}


def draw_matrices(section: Section) -> str | None:
    """Draw a matrix for each method and type of accuracy; None if no run has several tasks."""
    methods = [m for m in section.shown if any(get_tasks(run) for run in m.runs.values())]
    kinds = [kind for kind in KINDS if any(_has_kind(m, kind) for m in methods)]
    shown = list(itertools.product(kinds, methods))
    if not shown:
        return None
    out = io.StringIO()
    columns = len(methods) if len(methods) <= 4 else choose_columns(len(methods), 4)
    with draw_panels(len(shown), columns, out, f"{section.title}/tasks", HEIGHT) as (_, axes):
        for axis in axes[::columns]:
            axis.set_ylabel("task")
        for axis in axes[-columns:]:
            axis.set_xlabel("after task")
        for axis, (kind, method) in zip(axes, shown, strict=True):
            axis.grid(visible=False)
            axis.set_title(wrap_title(method.label + KINDS[kind], columns), fontsize=8)
            if not _has_kind(method, kind):
                axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes)
                axis.set_xticks([])
                axis.set_yticks([])
                continue
            values = compute_mean_matrix(method, kind)
            axis.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
            for (task, time), value in np.ndenumerate(values):
                ink = "black" if value > 50 else "white"
                axis.text(time, task, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=7)
            tasks, times = values.shape
            axis.set_xticks(range(times), ["start", *map(str, range(1, times))])
            axis.set_yticks(range(tasks), list(map(str, range(1, tasks + 1))))
    return out.getvalue()


def _has_kind(method: Method, kind: str) -> bool:
    """Return whether a run of the method has this type of accuracy."""
    return any(kind in get_tasks(run) for run in method.runs.values())


def compute_mean_matrix(method: Method, kind: str) -> np.ndarray:
    """Return the mean accuracies in percent, (tasks, times), of the runs that have them."""
    tasks = [get_tasks(run)[kind] for run in method.runs.values() if kind in get_tasks(run)]
    times = min(len(of["matrix"]) for of in tasks)
    mean: np.ndarray = 100 * np.mean([[of["start"], *of["matrix"][:times]] for of in tasks], axis=0).T
    return mean


def draw_task_figures(section: Section) -> list[tuple[str, str, str, str | None]]:
    """Return name, title, note and SVG of each figure."""
    return [("tasks", "Tasks one after the other", NOTE.replace("\n", " "), draw_matrices(section))]
