"""The comparison with FlowerTune's template: its rows, and both sides on a tiny model."""

from __future__ import annotations

import json

import pytest

from experiments.flowertune.settings import Settings, SideResult

SMALL = {
    "model": "tiny_lm", "rows": 80, "test_rows": 12, "asked": 2, "clients": 4, "rounds": 2, "steps": 2, "batch": 4,
    "tokens": 48, "rank": 4, "workers": 2, "ray": False,
}  # fmt: skip


@pytest.mark.slow
def test_both_sides_run_and_ours_loads_the_base_once_a_worker(tmp_path):
    from experiments.flowertune.__main__ import Command, main

    file = tmp_path / "found.jsonl"
    assert main(Command(Settings(**SMALL), output=file)) == 0
    theirs, ours = (
        SideResult(**{k: v for k, v in json.loads(x).items() if k != "of"}) for x in file.read_text().splitlines()
    )
    assert (theirs.side, ours.side) == ("template", "ours")
    assert (theirs.worker_loads, theirs.server_loads) == (2 * 2, 2)
    assert ours.worker_loads == 2
    assert ours.traffic < theirs.traffic
    assert theirs.distinct_rows <= 4 * 8
    assert 0 <= ours.exact_match <= 1
    assert ours.loss > 0
    written = file.read_text()
    assert main(Command(Settings(**SMALL), output=file)) == 0  # what is there is not run again
    assert file.read_text() == written
