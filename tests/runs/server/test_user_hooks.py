"""Hooks of a user's own: a plugin's file, chosen by `--hook`, in simulations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.checkouts import REPOSITORY
from fedpeft.commands.report import main as report
from fedpeft.simulate import main as simulate
from tests.refusals import has_error

BUDGET = REPOSITORY / "examples" / "budget.py"
TINY = ["--dataset=tiny", "--clients=2", "--rounds=3", "--tokens=8", "--dtype=fp32", "--workers=1", "--peft=lora"]
"""Settings of a run that takes a second or two."""


def read_lines(file: Path) -> list[dict]:
    """Return the JSON lines of a file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """Return the folder of a run that its budget has ended after round 1 of 3."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    hook = ["--plugin", str(BUDGET), "--hook", "budget(seconds=1e-9)"]
    assert simulate([*TINY, *hook, "--output", str(folder)]) == 0
    return folder


def test_a_hook_of_a_plugin_ends_the_run_and_adds_its_section(ended):
    summary = json.loads((ended / "summary.json").read_text())
    assert summary["rounds"] == 1
    section = summary["hooks"]["budget"]
    assert section["is_spent"] is True
    assert section["budget_seconds"] == 1e-9
    (line,) = read_lines(ended / "hooks.jsonl")
    assert line == {"round": 1, "hook": "budget", "spent_seconds": section["seconds"]}


def test_the_report_shows_the_section_of_a_hook(ended, tmp_path):
    page = tmp_path / "report.html"
    assert report([str(ended), "--output", str(page)]) == 0
    assert "budget: is spent" in page.read_text()
    assert "The run ended after 1 of " in page.read_text()
    assert "seconds is spent: the run ends after round 1" in page.read_text()
    assert "budget: is spent,yes" in (tmp_path / "report" / "hooks.csv").read_text()


def test_a_resumed_run_goes_on_with_what_the_hook_remembers(ended, tmp_path):
    """The budget is spent already, so the resumed run trains no further round and keeps its lines and its section."""
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    before = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    assert simulate(["--resume", str(folder)]) == 0
    after = json.loads((folder / "summary.json").read_text())
    assert after["rounds"] == 1
    assert (after["hooks"], after["ended_early"]) == (before["hooks"], before["ended_early"])
    assert len(read_lines(folder / "hooks.jsonl")) == 1


def test_the_settings_of_a_hook_are_checked_as_those_of_every_part(capsys, tmp_path):
    given = [*TINY, "--plugin", str(BUDGET), "--output", str(tmp_path / "run")]
    assert simulate([*given, "--hook", "budget(seconds=-1)"]) == 2
    assert has_error(capsys.readouterr().err, "FP1227", "budget", "-1.0")
    assert simulate([*given, "--hook", "budgets"]) == 2
    assert has_error(capsys.readouterr().err, "FP1231", "budgets")
