"""What a simulation costs as its clients grow in number."""

from __future__ import annotations

import pytest

from experiments.population.__main__ import Settings, main


@pytest.mark.slow
def test_the_command_prints_a_row_a_run(tmp_path, capsys):
    settings = Settings((20, 40), cohort=5, rows=4, rounds=1, dataset="tiny", tokens=16, workers=1)
    main(settings)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["20", "40"]
