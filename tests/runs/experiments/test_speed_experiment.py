"""The speed experiment on the tiny model: its own loop, our rounds, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.speed import report
from experiments.speed.study import Study
from tests.unit.experiments.test_speed_experiment import TINY


@pytest.mark.slow
def test_sides_agree_and_are_timed(tmp_path: Path) -> None:
    """Warm-up rounds are checked against the plain loop inside `run`."""
    result = Study(1, 1, False, ("plain", "fedpeft"), 0, tmp_path, lambda _: None).run(TINY)
    assert set(result.variants) == {"plain", "sequential", "batched"}
    assert result.steps == 6
    for measured in result.variants.values():
        assert measured.median > 0
        assert measured.peak_share > 0
    lines = [json.loads(line) for line in report.format_lines([result], report.Environment("", "", 1, 0.0, {}, {}))]
    assert [line["variant"] for line in lines] == list(result.variants)
