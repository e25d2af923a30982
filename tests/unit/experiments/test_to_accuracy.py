"""Time to accuracy: rules of levels, crossings and trials, the order of stages, and the table."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.recorded import append_line
from experiments.to_accuracy import report
from experiments.to_accuracy.__main__ import Settings, Study, main
from experiments.to_accuracy.rules import Curve, compute_area, derive_levels, find_crossing
from experiments.to_accuracy.settings import LEVEL_SEEDS, SEEDS, TRIALS, Job, draw_trials
from experiments.to_accuracy.sides import ColdCache, build_curve, compute_judged_share
from fedpeft.errors import ConfigError, RunError


def create_curve(*accuracy: float, pace: float = 10.0, size: int = 1_000_000) -> Curve:
    count = range(len(accuracy))
    return Curve([*count], [5 + pace * i for i in count], [size * i for i in count], [*accuracy])


def create_line(job: Job, curve: Curve) -> dict[str, Any]:
    return job.key | {
        "curve": vars(curve), "wall_seconds": 60.0, "load": [2.0, 2.5], "workers": 2, "cpu": "a CPU", "commit": "abc",
        "time": "2026-12-02 08:00",
    }  # fmt: skip


def test_levels_are_shares_of_the_median_gain() -> None:
    curves = [create_curve(0.4, 0.9, 0.7), create_curve(0.5, 0.8), create_curve(0.6, 0.7)]
    assert derive_levels(curves) == pytest.approx({"50 %": 0.65, "80 %": 0.74, "95 %": 0.785, "99 %": 0.797})


@pytest.mark.parametrize("curves", [[], [create_curve(0.7, 0.7)], [create_curve(0.7, 0.2)]])
def test_levels_need_a_gain(curves: list[Curve]) -> None:
    with pytest.raises(RunError, match="levels need a gain"):
        derive_levels(curves)


@pytest.mark.parametrize(
    ("accuracy", "level", "crossing"),
    [
        ((0.5, 0.7, 0.6, 0.8), 0.65, 1),  # the first one counts, although the curve falls below again
        ((0.5, 0.6), 0.7, None),  # never
        ((0.7, 0.5), 0.7, 0),  # reached at the start, by a tie
        ((0.1, 0.3), 0.1 + 0.2, 1),  # a tie, although the level's sum is above 0.3
        ((0.1, 0.299), 0.3, None),
        ((math.nan, 0.4), 0.3, 1),
    ],
)
def test_crossing_is_the_first_evaluation_at_or_above(
    accuracy: tuple[float, ...], level: float, crossing: int | None
) -> None:
    assert find_crossing(create_curve(*accuracy), level) == crossing


def test_area_prefers_a_fast_rise_and_a_high_end() -> None:
    assert compute_area(create_curve(0.5, 0.9, 0.6), 20) == pytest.approx(0.7)  # the highest so far counts
    slow, fast = create_curve(0.5, 0.5, 0.9), create_curve(0.5, 0.9, 0.9)
    assert compute_area(slow, 40) < compute_area(fast, 40) < compute_area(create_curve(0.5, 0.95, 0.9), 40)
    assert compute_area(create_curve(0.5, 0.9, 1.0), 15) == pytest.approx((10 * 0.5 + 5 * 0.9) / 15)


def test_curve_counts_all_traffic_and_no_evaluation() -> None:
    shape = {"uplink_bytes": 3, "downlink_bytes": 4, "training_seconds": 2.0, "seconds": 2.5}
    lines = [(i * 4.0, shape | {"round": i, "accuracy": accuracy}) for i, accuracy in enumerate([0.5, None, 0.7])]
    curve, evaluation = build_curve(lines)
    assert curve == Curve([0, 2], [-0.5, 6.5], [7, 21], [0.5, 0.7])
    assert evaluation == 1.5
    assert build_curve(lines, judged=0.2)[1] == pytest.approx(1.2)


def test_safeguard_counts_as_work() -> None:
    assert compute_judged_share("tiny(rows=120, test_rows=20)") == pytest.approx(0.5)  # judges all 12 examples


def test_run_takes_shared_entries_and_hands_on_what_it_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("FEDPEFT_CACHE", str(shared))
    for name in ("rows-1", "frozen-1", "model-1", "model-2.7.partial"):
        (shared / name).mkdir(parents=True)
    cache = ColdCache(tmp_path / "cold")
    assert sorted(entry.name for entry in cache.place.iterdir()) == ["model-1", "rows-1"]
    for name in ("rows-2", "frozen-2", "rows-3.7.partial"):
        (cache.place / name).mkdir()
    assert cache.share() == ["rows-2"]
    assert not cache.share()
    assert (shared / "rows-2").is_dir()
    assert not (shared / "frozen-2").exists()


def test_trials_are_as_many_as_stated_and_all_different() -> None:
    for side, count in TRIALS.items():
        trials = draw_trials(side)
        assert len({repr(trial) for trial in trials}) == len(trials) == count
        assert trials == draw_trials(side)
    assert all((trial.epochs, trial.server) == (1, "FedAvg") for trial in draw_trials("plain"))


def create_study(folder: Path, **changes: Any) -> Study:
    settings = replace(Settings(tasks=("one",), output=folder), **changes)
    return Study(settings, {"one": {"dataset": "tiny"}})


def record_search(study: Study) -> None:
    for place, job in enumerate(study.create_jobs("search")):
        append_line(study.results, create_line(job, create_curve(0.5, 0.6 + place % TRIALS["flower"] / 100)))


def test_comparison_refuses_to_run_without_levels_or_with_others(tmp_path: Path) -> None:
    study = create_study(tmp_path)
    record_search(study)
    with pytest.raises(RunError, match=r"there is no .*levels\.json"):
        study.run("compare")
    for job in study.create_jobs("levels"):
        append_line(study.results, create_line(job, create_curve(0.5, 0.9)))
    study.write_levels()
    assert study.read_levels() == {"one": pytest.approx({"50 %": 0.7, "80 %": 0.82, "95 %": 0.88, "99 %": 0.896})}
    content = json.loads(study.levels.read_text())
    content["levels"]["one"]["95 %"] = 0.8
    study.levels.write_text(json.dumps(content))
    with pytest.raises(RunError, match="not those of its runs"):
        study.run("compare")


def test_best_trial_has_the_largest_area_and_needs_the_whole_search(tmp_path: Path) -> None:
    study = create_study(tmp_path)
    with pytest.raises(RunError, match="12 of 12 trials of flower on one are missing"):
        study.create_jobs("levels")
    record_search(study)
    assert study.find_best("one", "flower") == draw_trials("flower")[-1]


def test_comparison_interleaves_all_sides_and_resumes(tmp_path: Path) -> None:
    study = create_study(tmp_path)
    record_search(study)
    jobs = study.create_jobs("compare")
    assert [job.seed for job in jobs] == [seed for seed in SEEDS for _ in range(4)]
    assert [job.side for job in jobs[:8:4]] == ["flower", "plain"]  # another side begins
    append_line(study.results, create_line(jobs[0], create_curve(0.5)))
    assert study.find_missing(jobs) == jobs[1:]
    assert not study.find_missing(study.create_jobs("search"))


def test_dry_run_counts_missing_runs_and_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Settings(tasks=("one",), output=tmp_path, dry_run=True), {"one": {}})
    said = capsys.readouterr().out
    assert "search: 15 of 15 runs are missing" in said
    assert f"levels: {len(LEVEL_SEEDS)} of {len(LEVEL_SEEDS)}" in said
    assert "compare: 20 of 20" in said
    assert "in all about" in said
    assert not list(tmp_path.iterdir())


def test_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tasks two is unknown; legal are one"):
        main(Settings(tasks=("two",), output=tmp_path), {"one": {}})


def test_ratios_are_taken_within_a_seed() -> None:
    runs = {
        "flower": {0: create_curve(0.5, 0.6, 0.8), 1: create_curve(0.5, 0.8), 2: create_curve(0.5)},
        "default": {0: create_curve(0.5, 0.8), 1: create_curve(0.5), 2: create_curve(0.5, 0.9), 3: create_curve(0.9)},
    }
    assert report.compute_ratios(runs, "default", 0.8, "seconds") == [25 / 15, 0.0, math.inf]
    assert report.compute_ratios(runs, "default", 0.8, "megabytes") == [2.0, 0.0, math.inf]
    assert report.format_spread([math.inf, 1.0, 2.0], 0) == "2 (1 to never)"


def test_report_writes_table_and_figure(tmp_path: Path) -> None:
    study = create_study(tmp_path)
    lines = [
        create_line(Job("compare", "one", side, seed), create_curve(0.5, 0.7 + seed / 100, 0.8, pace=10 * (place + 1)))
        for place, side in enumerate(("flower", "plain", "default"))
        for seed in (0, 1)
    ]
    with pytest.raises(RunError, match="no run of the comparison"):
        report.write(tmp_path, {}, study.lines)
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\n{report.END}\nafter\n")
    report.write(tmp_path, {"one": {"95 %": 0.71}}, lines)
    text = (tmp_path / "README.md").read_text()
    assert "| 95 %: 0.7100 | fedpeft, present default | 2 of 2 | 35 (35 to 65) |" in text
    assert "0.38 (0.38 to 0.43)" in text  # Flower: 25 s and 15 s
    assert "load average before a run 2.0 to 2.0" in text
    assert (tmp_path / report.FIGURE).read_text().startswith("<?xml")
