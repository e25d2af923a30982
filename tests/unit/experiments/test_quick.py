"""The table of the preview's seeds, and what the committed ones gain."""

from __future__ import annotations

import json

from experiments.quick.__main__ import RESULTS, format_table

SEEDS = (0, 1, 2, 3, 4, 101, 102, 103, 104)
"""The seeds of the claim. Those above 100 were drawn after the settings were chosen."""


def make_run(seed, accuracy):
    return {"seed": seed, "accuracy": accuracy, "probe": 0.5, "kept_round": 6, "cpu_seconds": 80.4}


def test_gains_are_in_points_over_the_start_and_over_the_probe():
    lines = format_table([make_run(1, 0.75), make_run(None, 0.5625), make_run(0, 0.625)])
    assert lines[2:4] == [
        "| 0 | 56.25 | 50.00 | 62.50 | +6.25 | +12.50 | 6 | 80 |",
        "| 1 | 56.25 | 50.00 | 75.00 | +18.75 | +25.00 | 6 | 80 |",
    ]
    assert [line.split("|")[5:7] for line in lines[4:]] == [
        [" +12.50 ", " +18.75 "],
        [" +6.25 ", " +12.50 "],
        [" +18.75 ", " +25.00 "],
    ]


def test_each_committed_seed_gains_three_points_on_start_and_probe():
    runs = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    (start,) = (run["accuracy"] for run in runs if run["seed"] is None)
    seeded = {run["seed"]: run for run in runs if run["seed"] is not None}
    assert set(SEEDS) <= set(seeded)
    for run in seeded.values():
        assert run["accuracy"] >= max(start, run["probe"]) + 0.03
