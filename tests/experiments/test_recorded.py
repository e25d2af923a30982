"""What commands read of studies: what is recorded is shown, and what is not there is said."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from fedpeft.studies.results import ResultsFile

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def printed(command, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    runpy.run_module(command, run_name="__main__")
    return capsys.readouterr().out.splitlines()[2:]


@pytest.mark.parametrize("command", ["experiments.harm", "experiments.private_plan"])
def test_a_preset_that_has_recorded_nothing_is_one_sentence(command, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        printed(command, ["--preset", "smal"], monkeypatch, capsys)
    assert "no finished run is recorded in" in capsys.readouterr().err


def test_each_default_stands_beside_its_start(monkeypatch, capsys):
    lines = printed("experiments.harm", [], monkeypatch, capsys)
    lines, beside = lines[: lines.index("")], lines[lines.index("") + 3 :]
    runs = {(r.point["task"], r.point["partition"], r.seed, r.point["state"]): r for r in
            ResultsFile(EXPERIMENTS / "harm" / "results.jsonl").read()}  # fmt: skip
    assert len(lines) == sum(state == "default" for *_, state in runs)
    for line in lines:
        task, partition, seed, start, after, rows, points, _ = (cell.strip() for cell in line.strip("|").split("|"))
        first, last = (runs[task, partition, int(seed), state].summary["accuracy"] for state in ("start", "default"))
        assert (float(start), float(after)) == pytest.approx((100 * first, 100 * last), abs=0.006)
        gained, lost = map(int, rows.split(" / "))
        tested = len(runs[task, partition, int(seed), "start"].scored.correct)
        assert float(points) == pytest.approx(100 * (gained - lost) / tested, abs=0.006)
    plain = "default, losses as they are"
    for line in beside:
        task, partition, count, *means = (cell.strip() for cell in line.strip("|").split("|"))
        seeds = [s for t, p, s, state in runs if (t, p, state) == (task, partition, plain)]
        seeds = [s for s in seeds if (task, partition, s, "default") in runs]
        assert len(seeds) == int(count)
        for column, (state, name) in enumerate(
            [("default", "accuracy"), (plain, "accuracy"), ("default", "last_accuracy"), (plain, "last_accuracy")]
        ):
            starts = [runs[task, partition, s, "start"].summary["accuracy"] for s in seeds]
            points = [runs[task, partition, s, state].summary[name] - start
                      for s, start in zip(seeds, starts, strict=True)]  # fmt: skip
            assert float(means[column]) == pytest.approx(100 * sum(points) / len(points), abs=0.006)
    assert len(beside) == 10


def test_a_preset_s_table_is_of_its_own_results(monkeypatch, capsys):
    lines = printed("experiments.private_plan", ["--preset", "shared"], monkeypatch, capsys)
    results = ResultsFile(EXPERIMENTS / "private_plan" / "shared" / "results.jsonl").read()
    assert sum(int(line.split("|")[3]) for line in lines) == len(results)
    assert [line.split("|")[1].strip() for line in lines] == sorted(
        (line.split("|")[1].strip() for line in lines), key=["R8", "R52", "code_types", "reviews"].index
    )
