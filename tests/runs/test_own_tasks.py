"""Tasks of one's own: what they say of themselves, of rows and of all rows is tried before a run."""

from __future__ import annotations

import json

import pytest

from fedpeft.evaluate.__main__ import main as evaluate
from fedpeft.parts import plugins
from fedpeft.simulate import main as simulate


def test_measures_that_are_no_numbers_are_noted(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(NO_NUMBERS)
    given = ["--plugin", str(file), "--dataset", "rows", "--clients", "3", "--rounds", "1", "--workers", "1"]
    with plugins.use_parts({}):
        assert simulate([*given, "--measure", "validation(keep=last)", "--output", str(tmp_path / "run")]) == 0
        assert "measured on the test rows, mine, probe.mine: NaN or infinite" in " ".join(
            capsys.readouterr().out.split()
        )
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["targets"]["mine"] is None
        assert evaluate([str(tmp_path / "run")]) == 0
    assert "global: measured on the test rows, mine: NaN or infinite" in " ".join(capsys.readouterr().out.split())
    text = (tmp_path / "run" / "evaluation" / "evaluation.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["measures"]["global"]["mine"] is None


NO_NUMBERS = """
from dataclasses import dataclass, replace

from fedpeft.data.rows import load_dataset
from fedpeft.models.tasks.regression import Regression


@dataclass(frozen=True)
class Mine(Regression):
    def measures(self, outputs, labels, names):
        return {"mine": float("nan")}


@dataclass(frozen=True)
class Rows:
    def load(self):
        tiny = load_dataset("tiny")
        parts = {name: replace(getattr(tiny, name), labels=getattr(tiny, name).labels.astype(float)) for name in
                 ("train", "test")}
        return replace(tiny, **parts, task="mine", label_names=("number",))


parts = {"tasks": {"mine": Mine}, "datasets": {"rows": Rows}}
"""
