"""How the cost of a simulation grows."""

from __future__ import annotations

import json

import pytest

from experiments.growth.__main__ import Cost, Growth, Settings, Size, list_axes, list_distinct, print_growth
from fedpeft.errors import ConfigError


def test_a_cost_is_read_from_a_run_s_records(tmp_path):
    phases = {"loading libraries": 3.0, "reading the examples": 1.0, "rounds": 50.0, "score": 4.0}
    (tmp_path / "summary.json").write_text(
        json.dumps({"parameters": 1000, "phases": phases, "peak_memory_bytes": 5_000_000})
    )
    seconds = {0: 2.0, 1: 30.0, 2: 10.0, 3: 12.0}
    (tmp_path / "rounds.jsonl").write_text(
        "".join(
            json.dumps({"round": number, "seconds": s, "uplink_bytes": 100 * number, "downlink_bytes": 7}) + "\n"
            for number, s in seconds.items()
        )
    )
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "000004.safetensors").write_bytes(bytes(700))
    assert Cost.read(tmp_path, 9.0) == Cost(
        parameters=1000,
        setup_seconds=4.0,
        prepare_seconds=2.0,
        round_seconds=11.0,
        processor_seconds=9.0,
        peak_memory_bytes=5_000_000,
        round_bytes=207,
        checkpoint_bytes=700,
    )


def test_each_axis_varies_alone_around_a_common_middle():
    axes = list_axes(Settings(clients=(50, 60, 70), cohorts=(1, 2, 3), ranks=(4, 5)))
    assert axes["clients"] == [Size(50, 2, 5), Size(60, 2, 5), Size(70, 2, 5)]
    assert axes["cohort"] == [Size(60, 1, 5), Size(60, 2, 5), Size(60, 3, 5)]
    assert axes["parameters"] == [Size(60, 2, 4), Size(60, 2, 5)]
    assert len(list_distinct(axes.values())) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(clients=(10,), cohorts=(20,)), "a cohort of 20 is larger than its population of 10"),
        (Settings(clients=()), "clients="),
        (Settings(ranks=(8, 4)), "ranks=.* ascending"),
        (Settings(cohorts=(0, 4)), "cohorts=.* at least 1"),
    ],
)
def test_sizes_that_cannot_run_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        list_axes(settings)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_fit_finds_the_exponent_of_a_power_law(exponent):
    sizes = [10.0, 100.0, 3000.0]
    growth = Growth.fit(sizes, [7.0 * size**exponent for size in sizes])
    assert growth.exponent == pytest.approx(exponent, abs=1e-9)
    assert growth.predict(30000.0) == pytest.approx(7.0 * 30000.0**exponent)


def test_the_table_shows_linear_growth_over_parameters(capsys):
    sizes = [Size(10, 2, rank) for rank in (4, 8, 16)]
    found = {size: [Cost(100 * size.rank, 1.0, 1.0, 1.0, 1.0, 10**9, 5_000 * size.rank, 10**6)] for size in sizes}
    print_growth({"clients": sizes[:1], "parameters": sizes}, found)
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in capsys.readouterr().out.splitlines() if line}
    assert [cell.strip() for cell in rows["cost"]] == ["exponent over parameters", "at ten times the largest"]
    assert [cell.strip() for cell in rows["a round's bytes (MB)"]] == ["1.00", "0.8"]
    assert [cell.strip() for cell in rows["memory (GB)"]] == ["0.00", "1"]
