"""The report: what stands on the page and in the CSV files, and how broken inputs are met. Results are made up."""

import csv
import io
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedpeft.config import RunConfig
from fedpeft.report import main
from fedpeft.studies.drawing import PANEL_HEIGHT, legend_below, logarithmic_if_wide, panels
from fedpeft.studies.measures import curve
from fedpeft.studies.page import TABLE_BEGINS, TABLE_ENDS, with_tables
from fedpeft.studies.results import QUANTILES, Result, ResultsFile, client_accuracy, pack, unpack
from fedpeft.studies.sections import Section
from fedpeft.studies.tables import comparison_table, cost_table, methods_table, tables

ROWS = 400


def made_result(
    point: dict[str, str], seed: int, skill: float, megabytes: float, epsilon: float | None = None
) -> Result:
    """A made-up run: its accuracy rises to `skill`; equal seeds share the luck of their test rows."""
    generator = np.random.default_rng(seed)
    luck = generator.random(ROWS)
    correct = (luck < skill).astype(np.float64)
    confidence = np.clip(skill + 0.3 * (generator.random(ROWS) - 0.5), 0, 1)
    rounds = []
    for round in range(6):
        share = 0 if round == 0 else megabytes * 1e6 / 10
        accuracy = skill - 0.3 * 0.5**round + 0.005 * generator.standard_normal()
        line = {"round": round, "clients": 5, "accuracy": accuracy, "loss": 2 - accuracy, "train_loss": 1.0}
        rounds.append({**line, "uplink_bytes": int(share), "downlink_bytes": int(share), "seconds": 2.0})
    from fedpeft.models.calibration import calibrate

    settings = {k: v for k, v in point.items() if k in RunConfig.__dataclass_fields__}
    return Result(
        config={**json.loads(json.dumps(RunConfig().__dict__)), **settings, "seed": seed},
        status="finished",
        seed=seed,
        study="made up",
        preset="",
        point=point,
        summary={
            "metric": "accuracy",
            "accuracy": float(correct.mean()),
            "loss": 1.0 - skill,
            "baseline_accuracy": 0.5,
            "uplink_bytes": int(megabytes * 5e5),
            "downlink_bytes": int(megabytes * 5e5),
            "uplink_bytes_per_parameter": 4.0,
            "seconds": 14.0 + seed,
            "peak_memory_bytes": int(5e8 + 1e6 * seed),
            "epsilon": epsilon,
            "hardware": {"cpu": "a processor", "workers": 1, "system": "a system"},
        },
        rounds=tuple(rounds),
        local_steps=100,
        trained_rows=800,
        correct=pack(correct),
        calibration=calibrate(confidence, correct).as_dict(),
        client_accuracy={
            "clients": 20,
            "quantiles": list(np.linspace(skill - 0.2, skill + 0.1, len(QUANTILES))),
            "worst_tenth": skill - 0.19,
        },
    )


METHODS = {
    "fp32": (0.70, 8.0),
    "bf16": (0.70, 4.0),
    "quantize(bits=4)": (0.66, 1.0),
    "topk(fraction=0.1)": (0.60, 2.0),
}


def made_study(seeds: int = 5, partitions: tuple[str, ...] = ("iid", "dirichlet(alpha=0.3)")) -> list[Result]:
    results = []
    for partition in partitions:
        for codec, (skill, megabytes) in METHODS.items():
            skill -= 0.08 if partition != "iid" else 0
            point = {"codec": codec, "partition": partition}
            results += [made_result(point, seed, skill, megabytes, 8.0 / megabytes) for seed in range(seeds)]
    point = {"codec": "sign", "partition": "iid"}
    failed = Result(config={"codec": "sign"}, status="failed", seed=0, study="made up", point=point, reason="no luck")
    return [*results, failed]


def write_study(folder: Path, results: list[Result]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = ResultsFile(folder / "results.jsonl")
    for result in results:
        file.append(result)
    return folder


def section(results: list[Result]) -> Section:
    return Section("made up", "a question", results, {"codec": "fp32"})


def test_page_is_self_contained_and_csv_hold_the_same_numbers(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", made_study())
    page = tmp_path / "page.html"
    assert main([str(study), "--output", str(page), "--baseline", "codec=fp32"]) == 0
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    assert "<script" not in text
    assert text.count("<svg") == 8
    ids = re.findall(r' id="(m[0-9a-f]{8,}|p[0-9a-f]{8,})"', text)
    assert len(ids) == len(set(ids)), "markers and clips of two figures must not be mixed up"
    for words in ("sign, iid, seed 0: no luck", "Pareto", "calibration error", "not resolved", "accuracy (%)"):
        assert words in text
    with open(tmp_path / "page" / "methods.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert float(rows[0]["test accuracy (%) mean"]) == pytest.approx(
        100 * np.mean([r.summary["accuracy"] for r in made_study()[:5] if r.summary])
    )
    assert {p.stem for p in (tmp_path / "page").glob("*.csv")} == {
        "methods", "resources", "comparisons", "cost", "clients", "runs", "rounds", "calibration",
    }  # fmt: skip


def test_broken_inputs_are_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_study(tmp_path / "good", made_study(2))
    with open(good / "results.jsonl", "a") as file:
        file.write('{"config": {"clie')
    broken = write_study(tmp_path / "broken", made_study(1))
    lines = (broken / "results.jsonl").read_text().splitlines()
    (broken / "results.jsonl").write_text("\n".join([lines[0][:50], *lines[1:]]) + "\n")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.toml").write_text("clients = 3\n")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.toml").write_text("clients = 3\nbatch_size = 8\n")
    (damaged / "summary.json").write_text("{")
    paths = [good, broken, unfinished, damaged, tmp_path / "absent"]
    assert main([*map(str, paths), "--output", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    for words in ("was cut short", "line 1 of", "unfinished run", "broken run", "does not exist"):
        assert said.count(words) == 1
        assert words in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output", "results.jsonl"], "NAME.html"),
        (["--margin", "0"], "above 0"),
        (["--targets", "sixty"], "percentages"),
        (["--baseline", "codec"], "axis=value"),
        (["--baseline", "kodec=fp32"], "did you mean 'codec'"),
        (["--baseline", "codec=fp23"], "did you mean 'fp32'"),
    ],
)
def test_wrong_flags_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    study = write_study(tmp_path / "study", made_study(1))
    before = (study / "results.jsonl").read_bytes()
    flags = flags if "--output" in flags else [*flags, "--output", str(tmp_path / "page.html")]
    assert main([str(study), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
    assert (study / "results.jsonl").read_bytes() == before


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    assert "nothing to report" in capsys.readouterr().err


def test_methods_are_compared_inside_their_context() -> None:
    made = section(made_study())
    table = comparison_table(made)
    assert table is not None
    assert len(table.data) == 6
    assert {r["baseline"] for r in table.data} == {"iid: fp32", "dirichlet(alpha=0.3): fp32"}
    verdicts = {r["method"]: (r["verdict"], r["no_worse"]) for r in table.data}
    assert verdicts["iid: bf16"] == ("identical", "yes")
    assert verdicts["iid: topk(fraction=0.1)"] == ("worse", "no")


def test_few_seeds_decide_nothing() -> None:
    table = comparison_table(section(made_study(4)))
    assert table is not None
    assert {(r["verdict"], r["no_worse"]) for r in table.data} == {("not resolved (4 of 5 seeds)", "not resolved")}


def test_pareto_front_of_each_context() -> None:
    on_front = {row["method"] for row in methods_table(section(made_study())).data if row["Pareto"]}
    assert on_front == {f"{p}: {c}" for p in ("iid", "dirichlet(alpha=0.3)") for c in ("bf16", "quantize(bits=4)")}


def test_cost_counts_rounds_and_bytes_until_the_target() -> None:
    made = section(made_study(1, ("iid",)))
    run = made.shown[0].runs[0]
    first = next(p for p in curve(run) if p.accuracy >= 60)
    table = cost_table(Section("", "", made.results, made.baseline, targets=(60.0, 99.0)))
    assert table is not None
    row = next(r for r in table.data if r["method"] == "fp32" and r["target_percent"] == 60)
    assert (row["rounds_mean"], row["MB_mean"]) == (first.round, pytest.approx(first.round * 1.6))
    assert row["seconds_mean"] == 2.0 * (first.round + 1)
    assert all(r["reached"] == 0 for r in table.data if r["target_percent"] == 99)


def test_personal_accuracy_is_not_paired_with_shared_test_rows() -> None:
    results = made_study(5, ("iid",))
    for result in results:
        if result.summary and result.point["codec"] == "bf16":
            result.summary["shared_accuracy"] = 0.5  # type: ignore[index]
    table = comparison_table(section(results))
    assert table is not None
    assert "bf16" not in {r["method"] for r in table.data}


def test_a_report_without_optional_data() -> None:
    bare = [
        Result(config={"codec": c, "seed": 0}, status="finished", seed=0, point={"codec": c}, summary={"accuracy": 0.5})
        for c in ("fp32", "bf16")
    ]
    assert {t.name for t in tables(section(bare))} == {"methods", "resources", "runs"}


def test_client_accuracy_weighs_classes_by_the_clients_shares() -> None:
    scores = {"correct": np.array([1.0, 1.0, 1.0, 0.0])}
    clients = {"labels": np.array([[10.0, 0.0], [0.0, 4.0], [5.0, 5.0]]), "test_labels": np.array([0.0, 0.0, 1.0, 1.0])}
    found = client_accuracy(scores, clients)
    assert found is not None
    assert (found["quantiles"][0], found["quantiles"][4], found["quantiles"][-1]) == (0.5, 0.75, 1.0)
    assert found["worst_tenth"] == 0.5
    assert client_accuracy(scores, {}) is None


@pytest.mark.parametrize("values", [[], [1, 0, 1, 1, 0, 0, 0, 1, 1], [0, 7, 300, 2]])
def test_packed_numbers_come_back(values: list[int]) -> None:
    assert unpack(json.loads(json.dumps(pack(np.array(values, dtype=float))))).tolist() == values


def test_readme_gets_tables_between_its_markers() -> None:
    readme = f"# Study\n\n{TABLE_BEGINS}\nold\n{TABLE_ENDS}\n\nReading.\n"
    made = tables(section(made_study(2)))
    once = with_tables(readme, made)
    assert "old" not in once
    assert once.endswith("Reading.\n")
    assert "| iid: fp32 | 2 |" in once
    assert with_tables(once, made) == once
    assert with_tables("no markers", made) == "no markers"


def test_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", made_study(1, ("iid",)))
    command = [sys.executable, "-m", "fedpeft.report", str(study)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()


def test_many_methods_leave_their_panel_its_height() -> None:
    """The legend is as long as it must be; the plot above it does not pay for it."""
    with panels(1, io.StringIO(), "salt") as (figure, [axis]):
        for i in range(12):
            axis.plot([0, 1], [0, i], label=f"a method whose name fills a line of the legend, {i}")
        legend_below(figure, [axis])
        figure.canvas.draw()
        assert axis.get_window_extent().height / figure.dpi > 0.7 * PANEL_HEIGHT


def test_bytes_that_differ_by_an_order_of_magnitude_are_drawn_on_a_logarithmic_axis() -> None:
    for values, scale in (([2, 60], "log"), ([20, 60], "linear"), ([0, 60], "linear")):
        with panels(1, io.StringIO(), "salt") as (_, [axis]):
            axis.plot(values, [1, 2])
            logarithmic_if_wide(axis)
            assert axis.get_xscale() == scale


def test_an_axis_over_many_decades_names_decades_alone() -> None:
    for high, apart in ((300, 2), (30000, 10)):
        with panels(1, io.StringIO(), "salt") as (_, [axis]):
            axis.plot([2, high], [1, 2])
            logarithmic_if_wide(axis)
            ticks = axis.get_xticks()
            assert min(b / a for a, b in pairwise(ticks)) == pytest.approx(apart)
