"""Where the time of a run goes, from its own records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.budget.__main__ import Budget, Settings, split_round_seconds
from experiments.budget.__main__ import main as budget
from fedpeft.errors import ConfigError, RunError

ROOT = Path(__file__).parents[3]


def line(round_number, training, aggregation, seconds):
    return {"round": round_number, "training_seconds": training, "aggregation_seconds": aggregation, "seconds": seconds}


@pytest.mark.fast
def test_the_rounds_are_told_in_parts_that_add_up_to_them():
    parts = split_round_seconds([line(0, 50, 0, 60), line(1, 4, 1, 5), line(2, 6, 1, 9)], 15)
    assert parts == {
        "rounds: training": 8,
        "rounds: aggregation": 2,
        "rounds: validation": 4,
        "rounds: records and checkpoints": 1,
    }


@pytest.mark.fast
@pytest.mark.parametrize(
    "lines",
    [[], [line(1, None, None, None)], [line(1, 40, 1, 50)]],
    ids=["none", "of a secret cohort", "of before a resume"],
)
def test_rounds_that_do_not_tell_their_times_are_one_part(lines):
    assert split_round_seconds(lines, 15) == {"rounds": 15}


@pytest.fixture
def run(finished_run):
    return finished_run(dataset="tiny", clients=4, cohort=2, rounds=2)


@pytest.mark.medium
def test_the_parts_of_a_run_add_up_to_its_time(run):
    budget = Budget.read(run)
    assert sum(budget.parts.values()) == pytest.approx(budget.seconds)
    assert {"loading the model", "rounds: training", "all else"} <= set(budget.parts)
    assert any(part.endswith("its temperature, on the validation examples") for part in budget.parts)


@pytest.mark.slow
def test_the_command_prints_a_table_and_draws_bars(run, tmp_path):
    words = [sys.executable, "-m", "experiments.budget", str(run), str(run), "--chart", str(tmp_path / "bars.svg")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "rounds: training" in done.stdout
    assert "in all" in done.stdout
    assert "<svg" in (tmp_path / "bars.svg").read_text()


@pytest.mark.medium
def test_a_run_without_phases_is_one_sentence(run, tmp_path):
    for name in ("config.toml", "summary.json"):
        (tmp_path / name).write_text((run / name).read_text())
    summary = json.loads((run / "summary.json").read_text()) | {"phases": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RunError, match="has recorded no phases"):
        Budget.read(tmp_path)


@pytest.mark.fast
@pytest.mark.parametrize("chart", ["bars.txt", "nowhere/bars.svg"])
def test_bars_that_cannot_be_drawn_are_refused_before_anything_is_run(chart, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.budget.__main__.make_run", lambda *_: pytest.fail("a run was made"))
    with pytest.raises(ConfigError, match=r"--chart .* must end in"):
        budget(Settings(chart=tmp_path / chart))
