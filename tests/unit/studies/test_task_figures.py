"""What a report says of tasks one after the other: means of matrices over seeds, and measures that tables show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedpeft.reporting.task_measures import compute_transfer
from fedpeft.study.figures import draw_figures
from fedpeft.study.measures import BY_KEY
from fedpeft.study.results import Result
from fedpeft.study.sections import Section
from fedpeft.study.task_figures import compute_mean_matrix, draw_matrices
from tests.studies.made import made_result

START = [0.3, 0.2]


def with_tasks(run: Result) -> Result:
    matrix = [[0.9 - 0.1 * run.seed, 0.2], [0.5, 0.8]]
    found = {kind: {"start": START, "matrix": matrix, **compute_transfer(matrix, START)} for kind in ("accuracy",)}
    tasks = {"names": ["one", "two"], "rounds": [2, 4], "late": 0, **found}
    return dataclasses.replace(run, summary={**(run.summary or {}), "tasks": tasks})


@pytest.mark.medium
def test_a_matrix_is_the_mean_over_seeds_and_a_plain_study_has_none():
    plain = [made_result({"strategy": name}, seed, 0.7, 1.0) for name in ("fedit", "o_lora") for seed in range(2)]
    section = Section("tasks", "", [with_tasks(run) for run in plain], {"strategy": "fedit"})
    [method, _] = section.methods
    expected = 100 * np.array([[0.3, 0.85, 0.5], [0.2, 0.2, 0.8]])
    assert np.allclose(compute_mean_matrix(method, "accuracy"), expected)
    assert method.compute_mean("task_average") == 65.0
    assert np.isclose(method.compute_mean("task_forgetting"), 35.0)
    assert method.compute_mean("task_known") is None
    drawn = {figure.name: figure.svg for figure in draw_figures(section)}
    assert drawn["tasks"].count("<svg") == 1
    assert "tasks" not in {f.name for f in draw_figures(Section("plain", "", plain, {"strategy": "fedit"}))}
    assert BY_KEY["spans"].value(plain[0]) is None


@pytest.mark.medium
def test_a_figure_names_the_methods_whose_accuracy_with_known_tasks_was_not_measured():
    plain = [made_result({"strategy": name}, 0, 0.7, 1.0) for name in ("fedit", "o_lora")]
    first, second = (with_tasks(run) for run in plain)
    tasks = {**second.summary["tasks"], "accuracy_known_task": second.summary["tasks"]["accuracy"]}
    second = dataclasses.replace(second, summary={**second.summary, "tasks": tasks})
    drawn = draw_matrices(Section("tasks", "", [first, second], {"strategy": "fedit"}))
    assert drawn is not None
    assert drawn.count("not measured") == 1
