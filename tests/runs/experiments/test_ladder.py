"""The ladder: every rung on a made task, the table, and what is measured once."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.ladder import __main__ as command
from experiments.ladder.rungs import create_cells
from experiments.ladder.settings import TASKS
from tests.unit.experiments.test_ladder import SMALL


@pytest.mark.slow
def test_every_rung_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "small", SMALL)
    arguments = [
        "ladder",
        "--dataset",
        "small",
        "--clients",
        "2",
        "--full",
        "--workers",
        "1",
        "--output",
        str(tmp_path),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    lines = command.read(tmp_path / "results.jsonl")
    assert [entry["rung"] for entry in lines] == [cell.rung for cell in create_cells(SMALL, 1, 2, True, 1)]
    assert {entry["rung"] for entry in lines} == set(command.ORDER) - {"pixels"}
    assert all(0 < entry["accuracy"] <= 1 for entry in lines)
    before = (tmp_path / "results.jsonl").read_text()
    command.main()
    assert (tmp_path / "results.jsonl").read_text() == before
