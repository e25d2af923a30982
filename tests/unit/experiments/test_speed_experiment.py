"""The speed experiment on the tiny model: its own loop, our rounds, and the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.speed import report, study
from experiments.speed.study import MeasuredVariant, Result, choose_variants
from experiments.speed.workload import Case, create_workload

TINY = Case("tiny", clients=3, rows=4, batch_size=2, dtype="fp32", dataset="tiny", federation=4, tokens=32)


def test_levers_that_change_nothing_are_left_out(tmp_path: Path) -> None:
    load = create_workload(TINY, 1, tmp_path)
    names = set(choose_variants(TINY, load, True, ("fedpeft",)))
    assert {"sequential", "batched"} <= names
    assert ("kernel" in names) == (load.plan.depth > 0 and load.plan.kernel != "native")


def test_ratio_is_taken_within_a_repeat() -> None:
    ours = MeasuredVariant(study.VARIANTS["batched"], [1.0, 2.0, 4.0])
    theirs = MeasuredVariant(study.VARIANTS["flower"], [3.0, 8.0, 8.0])
    assert ours.compute_ratios(theirs) == (3.0, 2.0, 4.0)


def test_wrong_update_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"the update of batched in fp64 is 1\.0e-03 away"):
        study._check_difference("batched", "fp64", 1e-3)


def test_the_results_name_the_command() -> None:
    result = Result(
        TINY, 6, 100, 2, "native", {"plain": MeasuredVariant(study.VARIANTS["plain"], [1.0])}, {"attention": 1.0}
    )
    text = report.format_markdown([result], report.Environment("", "cpu", 1, 0.0, {}, {}), "command", 1e-14)
    assert text.startswith("`command`\n\n")
