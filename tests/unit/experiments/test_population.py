"""What a simulation costs as its clients grow in number."""

from __future__ import annotations

import json

import pytest

from experiments.population.__main__ import Cost, Settings, main
from fedpeft.errors import ConfigError


def test_a_cost_is_read_from_a_run_s_records(tmp_path):
    phases = {"loading libraries": 3.0, "reading the examples": 1.0, "rounds": 50.0, "score": 4.0}
    (tmp_path / "summary.json").write_text(
        json.dumps({"clients": 1000, "phases": phases, "peak_memory_bytes": 5_000_000})
    )
    seconds = {0: 2.0, 1: 30.0, 2: 10.0, 3: 12.0}
    (tmp_path / "rounds.jsonl").write_text(
        "".join(json.dumps({"round": number, "seconds": s}) + "\n" for number, s in seconds.items())
    )
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "000004.safetensors").write_bytes(bytes(700))
    assert Cost.read(tmp_path) == Cost(1000, 4.0, 2.0, 11.0, 5_000_000, 700, [30.0, 10.0, 12.0])


def test_a_cohort_larger_than_the_population_is_one_sentence():
    with pytest.raises(ConfigError, match="at least that of the cohort"):
        main(Settings((10,), cohort=20))
