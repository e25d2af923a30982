"""How the cost of a simulation grows."""

from __future__ import annotations

import json

import pytest

from experiments.growth.__main__ import Settings, main


@pytest.mark.slow
def test_the_command_prints_a_row_a_size_and_the_growth(tmp_path, capsys):
    output = tmp_path / "lines.jsonl"
    settings = Settings((20, 40), (5,), (2, 4), repeats=1, rows=4, rounds=1, workers=1, output=output)
    main(settings)
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert [row[0] for row in rows[2:5]] == ["20", "40", "40"]
    growth = {row[0]: row[1:] for row in rows[5:]}
    assert float(growth["a round's bytes (MB)"][0]) == pytest.approx(0, abs=0.01)
    assert 0.5 < float(growth["a round's bytes (MB)"][2]) < 1.01  # the head keeps its size
    assert {(line["clients"], line["rank"]) for line in map(json.loads, output.read_text().splitlines())} == {
        (20, 4), (40, 2), (40, 4)
    }  # fmt: skip
