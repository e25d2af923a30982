"""What commands read of studies: what is recorded is shown, and what is not there is said."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.recorded import read_recorded
from fedpeft.errors import RunError
from fedpeft.study.results import Result, ResultsFile

PARTITIONS = ("dirichlet(alpha=0.5)", "dirichlet(alpha=0.1)", "dirichlet(alpha=0.05)")
EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def printed(command, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    runpy.run_module(command, run_name="__main__")
    return capsys.readouterr().out.splitlines()[2:]


def tables(lines):
    """Return the cells of each table, without its head."""
    found, rest = [], lines
    while "" in rest:
        at = rest.index("")
        found.append(rest[:at])
        rest = rest[at + 3 :]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in table] for table in (*found, rest)]


def test_a_preset_that_the_study_lacks_is_one_sentence(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        printed("experiments.harm", ["--preset", "smal"], monkeypatch, capsys)
    assert "FP1423" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "place"), [([], "study.toml runs"), (["--preset", "more"], "--preset more")])
def test_a_preset_that_has_recorded_nothing_is_one_sentence(tmp_path, monkeypatch, arguments, place):
    head = 'name = "one"\nquestion = "?"\nseeds = [0]\npreset = "few"\n'
    (tmp_path / "study.toml").write_text(head + "[axes]\nrounds = [1]\n[presets.few]\n[presets.more]\n")
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(RunError, match=place):
        read_recorded(tmp_path, None)
    named = tmp_path / "more" if arguments else tmp_path
    named.mkdir(exist_ok=True)
    result = Result({}, "finished", 0, summary={})
    ResultsFile(named / "results.jsonl").append(result)
    assert len(read_recorded(tmp_path, None)) == 1


def test_each_default_stands_beside_its_start(monkeypatch, capsys):
    each, means, beside = tables(printed("experiments.harm", [], monkeypatch, capsys))
    recorded = ResultsFile(EXPERIMENTS / "harm" / "results.jsonl").read()
    runs = {(r.point["task"], r.point["partition"], r.seed, r.point["state"]): r for r in recorded}
    defaults = [key for key in runs if key[-1] == "default"]
    assert len(each) == len(defaults)
    of_partitions: dict[tuple[str, str], list[float]] = {}
    for (task, partition, seed, start, after, rows, points, _), key in zip(each, defaults, strict=True):
        assert (task, partition, int(seed)) == key[:3]
        first, last = (runs[*key[:3], state].summary["accuracy"] for state in ("start", "default"))
        assert (float(start), float(after)) == pytest.approx((100 * first, 100 * last), abs=0.006)
        gained, lost = map(int, rows.split(" / "))
        tested = len(runs[*key[:3], "start"].test_counts.correct)
        assert float(points) == pytest.approx(100 * (gained - lost) / tested, abs=0.006)
        of_partitions.setdefault((task, partition), []).append(100 * (last - first))
    shown = {(task, p): cell for task, _, *cells in means for p, cell in zip(PARTITIONS, cells, strict=True) if cell}
    assert shown.keys() == of_partitions.keys()
    for where, points in of_partitions.items():
        mean, *interval, count = shown[where].replace("(", "").replace(")", "").replace("to ", "").split()
        assert (float(mean), count) == (pytest.approx(np.mean(points), abs=0.006), f"[{len(points)}]")
        if len(points) > 1 and np.std(points) > 0:
            expected = stats.t.interval(0.95, len(points) - 1, np.mean(points), stats.sem(points))
            assert list(map(float, interval)) == pytest.approx(expected, abs=0.006)
    plain = "default, losses as they are"
    for task, partition, count, *points in beside:
        both = [k[:3] for k in defaults if k[:2] == (task, partition) and (*k[:3], plain) in runs]
        assert len(both) == int(count)
        columns = [("default", "accuracy"), (plain, "accuracy"), ("default", "last_accuracy"), (plain, "last_accuracy")]
        for shown_points, (state, name) in zip(points, columns, strict=True):
            gained = [runs[*k, state].summary[name] - runs[*k, "start"].summary["accuracy"] for k in both]
            assert float(shown_points) == pytest.approx(100 * np.mean(gained), abs=0.006)
    assert len(beside) == 10


def test_a_preset_s_table_is_of_its_own_results(monkeypatch, capsys):
    lines = printed("experiments.private_plan", ["--preset", "shared"], monkeypatch, capsys)
    results = ResultsFile(EXPERIMENTS / "private_plan" / "shared" / "results.jsonl").read()
    assert sum(int(line.split("|")[3]) for line in lines) == len(results)
    assert [line.split("|")[1].strip() for line in lines] == sorted(
        (line.split("|")[1].strip() for line in lines), key=["R8", "R52", "code_types", "reviews"].index
    )


def test_a_preset_s_defaults_stand_beside_those_of_the_small_one(monkeypatch, capsys):
    *_, beside = tables(printed("experiments.harm", ["--preset", "discriminant"], monkeypatch, capsys))
    small, own = (
        {(r.point["task"], r.point["partition"], r.seed): 100 * r.summary["accuracy"]
         for r in ResultsFile(EXPERIMENTS / folder / "results.jsonl").read() if r.point["state"] == "default"}
        for folder in ("harm", "harm/discriminant")
    )  # fmt: skip
    assert len(beside) == 2
    for task, partition, mean, of_small, points in beside:
        pairs = np.array([(own[key], small[key]) for key in own if key[:2] == (task, partition)])
        gained = pairs[:, 0] - pairs[:, 1]
        span = f"{pairs[:, 0].mean():.1f} ({pairs[:, 0].min():.1f} to {pairs[:, 0].max():.1f})"
        assert (mean, of_small) == (span, f"{pairs[:, 1].mean():.1f}")
        low, high = stats.t.interval(0.95, len(gained) - 1, gained.mean(), stats.sem(gained))
        assert points == f"{gained.mean():+.2f} ({low:+.2f} to {high:+.2f}) [{len(gained)}]"


@pytest.mark.parametrize("command", ["experiments.trust", "experiments.tune"])
def test_a_command_without_options_refuses_them(command, monkeypatch, capsys):
    """The tune command writes files, so it must not ignore its arguments."""
    with pytest.raises(SystemExit, match="2"):
        printed(command, ["--nonsense"], monkeypatch, capsys)
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err
