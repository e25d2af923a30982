"""Very many clients: what is drawn, asked and stored does not grow with them."""

from __future__ import annotations

import json

import pytest

from fedpeft.rounds import sampling
from fedpeft.rounds.progress import Checkpoints
from fedpeft.simulate import main
from tests.unit.simulation.test_populations import flags


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    folder = tmp_path_factory.mktemp("population") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "MEASURED", 20)
        assert main([*flags(clients=1_000_000), "--output", str(folder)]) == 0
    return folder


def test_a_million_clients_are_a_run(million):
    summary = json.loads((million / "summary.json").read_text())
    assert summary["clients"] == 1_000_000
    assert summary["partition"]["resampled"] is True
    assert summary["cohort"] == 3
    assert summary["distinct_rows"] is None


def test_the_start_asks_some_of_them_and_says_how_many(million):
    first, *rounds = [json.loads(line) for line in (million / "rounds.jsonl").read_text().splitlines()]
    assert (first["clients"], first["rejected"]) == (20, 0)
    assert [line["clients"] for line in rounds] == [3, 3]


def test_a_checkpoint_holds_those_that_were_heard_of_as_arrays(million):
    progress = Checkpoints(million / "checkpoint").load()
    assert 20 <= len(progress.rows) <= 26
    assert set(progress.rows.values()) == {4}
    assert len(progress.acknowledged) == 6
    [file] = (million / "checkpoint").glob("*.safetensors")
    assert b"acknowledged" not in file.read_bytes().split(b'"progress"')[1][:2000]
