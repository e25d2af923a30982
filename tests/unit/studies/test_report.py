"""The report: what stands on the page and in the CSV files, and how broken inputs are met. Results are made up."""

import csv
import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft.commands.report import main
from fedpeft.reporting.plots import plot_run
from fedpeft.reporting.summary import OWN_ROWS
from fedpeft.study.measures import BY_KEY, build_curve, format_heading
from fedpeft.study.page import TABLE_BEGINS, TABLE_ENDS, PageSection, insert_tables, render_page
from fedpeft.study.results import Result, compute_client_accuracy, pack, unpack
from fedpeft.study.sections import Section, describe_run
from fedpeft.study.tables import build_comparison_table, build_cost_table, build_measures_table, build_tables
from tests.refusals import has_error
from tests.studies.made import made_result, made_study, section, write_study


@pytest.mark.medium
def test_page_is_self_contained_and_csv_hold_the_same_numbers(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", made_study())
    page = tmp_path / "page.html"
    assert main([str(study), "--output", str(page), "--baseline", "codec=fp32"]) == 0
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    assert text.count("<svg") == 6
    ids = re.findall(r' id="(m[0-9a-f]{8,}|p[0-9a-f]{8,})"', text)
    assert len(ids) == len(set(ids)), "markers and clips of two figures must not be mixed up"
    for words in ("sign, iid, seed 0: no luck", "Pareto", "calibration error", "not resolved", "accuracy (%)"):
        assert words in text
    with open(tmp_path / "page" / "accuracy.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert float(rows[0]["test accuracy (%) mean"]) == pytest.approx(
        100 * np.mean([r.summary["accuracy"] for r in made_study()[:5] if r.summary])
    )
    assert {p.stem for p in (tmp_path / "page").glob("*.csv")} == {
        "accuracy", "loss", "worst", "calibration_error", "epsilon", "resources", "comparisons", "cost", "clients",
        "runs", "rounds", "calibration",
    }  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("sections", [1, 2])
def test_the_contents_lead_to_every_table_and_figure_and_a_title_stands_once(sections: int) -> None:
    made = [PageSection.from_section(section(made_study(1, ("iid",)))) for _ in range(sections)]
    text = render_page("made up" if sections == 1 else "two studies", made, [], "csv")
    contents = re.findall("<nav.*?</nav>", text, re.DOTALL)
    targets = re.findall(r'href="#([^"]*)"', "".join(contents))
    shown = [*[t for t in made[0].tables if t.headings], *made[0].figures]
    assert len(targets) == sections * (len(shown) + (sections > 1))
    ids = re.findall(r'<(?:section|h2|h3)[^>]* id="([^"]*)"', text)
    assert set(targets) <= set(ids)
    assert len(ids) == len(set(ids))
    assert [re.sub("<.*?>", "", h) for h in re.findall(r"<h[12].*?</h[12]>", text)].count("made up") == sections


@pytest.mark.medium
def test_ink_and_ground_of_figures_are_the_pages() -> None:
    """In the dark they turn; a colour that stays black there could not be seen."""
    made = PageSection.from_section(section(made_study(1, ("iid",))))
    text = render_page("", [made], [], "csv")
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--ink)" in drawn
    assert "var(--paper)" in drawn
    assert not set(re.findall(r"#[0-9a-f]{6}\b", drawn)) & {"#000000", "#ffffff", "#1b1b1b"}
    assert "var(" not in made.figures[0].svg, "a figure in a file of its own has no page"


@pytest.mark.medium
@pytest.mark.parametrize("lone", [True, False])
@pytest.mark.parametrize(("metric", "name"), [("skill", "skill"), ("perplexity", "next-token accuracy")])
def test_runs_that_are_judged_by_something_else_say_so_everywhere(metric: str, name: str, lone: bool) -> None:
    results = [made_result({}, 3, 0.7, 8.0)] if lone else made_study(1, ("iid",))
    for run in results:
        if run.summary:
            run.summary.update(metric=metric, perplexity=3.5 if metric == "perplexity" else None)  # type: ignore[attr-defined]
    made = PageSection.from_section(Section("a run", "", results, {}) if lone else section(results))
    texts = [text for t in made.tables if t.headings for text in (t.title, t.note, *t.headings)]
    texts += [cell for t in made.tables if t.name == "result" for row in t.shown for cell in row]
    texts += [text for f in made.figures for text in (f.title, f.note)]
    assert any(f"test {name} (%)" in text for text in texts)
    for text in texts:
        assert "accuracy" not in text.lower().replace("next-token accuracy", ""), text


def test_a_page_about_one_run_compares_nothing() -> None:
    run = made_result({}, 3, 0.7, 8.0)
    made = PageSection.from_section(Section("a run", "", [run], {}))
    assert [t.name for t in made.tables if t.headings] == ["result", "cost", "clients", "rounds"]
    assert [f.name for f in made.figures] == ["course", "curves", "clients", "reliability"]
    text = render_page("a run", [made], [], "csv")
    for words in ("all runs", "finished", "seeds", "Pareto", "baseline ("):
        assert words not in re.sub("<(style|script|svg).*?</\\1>", "", text, flags=re.DOTALL)
    assert "20 rounds, 100 clients, seed 3" in text
    assert {t.name for t in made.tables} >= {"runs", "rounds", "calibration"}, "CSV files are those of any section"
    [result] = [t for t in made.tables if t.name == "result"]
    assert dict(result.shown)["frozen linear probe (%)"] == "50.00"


def test_a_run_is_described_by_its_data_rule_and_method() -> None:
    run = dataclasses.replace(made_result({}, 0, 0.7, 8.0), settled={"peft": "lora"})
    assert describe_run(run) == "reviews, fedit, lora"
    for dataset in ("file:/home/me/shops.csv", "file(path='/home/me/shops.csv', text='comment')"):
        run.config["dataset"] = dataset
        assert describe_run(run) == "shops.csv, fedit, lora"


def test_the_axes_of_a_run_end_at_round_numbers() -> None:
    rounds = [{"round": n, "accuracy": 0.613 + 0.1 * n, "loss": 1.07 - 0.3 * n, "train_loss": 0.9} for n in range(3)]
    accuracies, losses = plot_run(rounds, {"metric": "accuracy"}).axes
    assert accuracies.get_xlim() == (0, 2)
    for limit in (*accuracies.get_ylim(), *(100 * limit for limit in losses.get_ylim())):
        assert limit % 2.5 == pytest.approx(0, abs=1e-6) or limit % 2.5 == pytest.approx(2.5)


def test_points_and_rounds_have_their_words() -> None:
    made = section(made_study(5, ("iid",)))
    table = build_comparison_table(made)
    assert table is not None
    assert table.headings[-1] == "no worse by more than 1 point"
    over = ("seeds", "test rows", "both")
    assert [h for h in table.headings if "95 %" in h] == [f"95 % over {what} (points)" for what in over]
    reached = build_cost_table(Section("", "", made.results, made.baseline, targets=(1.0,)))
    assert reached is not None
    assert {row[3] for row in reached.shown} == {"0 (before round 1)"}


@pytest.mark.medium
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
    paths = [good, broken, unfinished, damaged, tmp_path / "empty"]
    paths[-1].mkdir()
    assert main([*map(str, paths), "--output", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    for words in ("was cut short", "line 1 of", "unfinished run", "broken run", "holds neither"):
        assert said.count(words) == 1
        assert words in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output", "results.jsonl"], ("FP1290", "--output", "NAME.html", "results.jsonl")),
        (["--margin", "0"], ("FP1293", "--margin", 0)),
        (["--margin", "nan"], ("FP1293", "--margin", "nan")),
        (["--margin", "inf"], ("FP1293", "--margin", "inf")),
        (["--targets", "sixty"], ("FP1287", "--targets", "'sixty'")),
        (["--baseline", "codec"], ("FP1286", "--baseline", "axis=value", "'codec'")),
        (["--baseline", "kodec=fp32"], ("FP1288", "'kodec'", "did you mean 'codec'")),
        (["--baseline", "codec=fp23"], ("FP1289", "codec=fp23", "did you mean 'fp32'")),
    ],
)
def test_wrong_flags_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: tuple[object, ...]
) -> None:
    study = write_study(tmp_path / "study", made_study(1))
    before = (study / "results.jsonl").read_bytes()
    flags = flags if "--output" in flags else [*flags, "--output", str(tmp_path / "page.html")]
    assert main([str(study), *flags]) == 2
    assert has_error(capsys.readouterr().err, *words)
    assert not (tmp_path / "page.html").exists()
    assert (study / "results.jsonl").read_bytes() == before


@pytest.mark.medium
def test_the_page_of_a_study_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It lies where a page goes that no one has named."""
    study = write_study(tmp_path / "study", made_study(1))
    (study / "report.html").write_text("the study's")
    monkeypatch.chdir(study)
    assert main(["."]) == 2
    assert has_error(capsys.readouterr().err, "FP1291", "report.html")
    assert (study / "report.html").read_text() == "the study's"
    assert not (study / "report").exists()
    assert main([".", "--output", "another.html"]) == 0


def test_the_page_of_a_search_is_left_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study", made_study(1))
    search = tmp_path / "search"
    search.mkdir()
    (search / "search.journal").write_text("")
    assert main([str(study), "--output", str(search / "report.html")]) == 2
    assert has_error(capsys.readouterr().err, "FP1292", "report.html", "search.journal")
    assert [path.name for path in search.iterdir()] == ["search.journal"]


def test_a_path_that_is_named_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path / "study", made_study(1))
    assert main([str(tmp_path / "studie"), str(study), "--output", str(tmp_path / "page.html")]) == 2
    assert has_error(capsys.readouterr().err, "FP5163", "studie")
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    assert has_error(capsys.readouterr().err, "FP5164")


def test_methods_are_compared_inside_their_context() -> None:
    made = section(made_study())
    table = build_comparison_table(made)
    assert table is not None
    assert len(table.data) == 6
    assert {r["baseline"] for r in table.data} == {"iid: fp32", "dirichlet(alpha=0.3): fp32"}
    verdicts = {r["method"]: (r["verdict"], r["no_worse"]) for r in table.data}
    assert verdicts["iid: bf16"] == ("identical", "yes")
    assert verdicts["iid: topk(fraction=0.1)"] == ("worse", "no")


def test_few_seeds_decide_nothing() -> None:
    table = build_comparison_table(section(made_study(4)))
    assert table is not None
    assert {(r["verdict"], r["no_worse"]) for r in table.data} == {("not resolved (4 of 5 seeds)", "not resolved")}


def test_pareto_front_of_each_context() -> None:
    on_front = {row["method"] for row in build_measures_table(section(made_study()), "accuracy").data if row["Pareto"]}
    assert on_front == {f"{p}: {c}" for p in ("iid", "dirichlet(alpha=0.3)") for c in ("bf16", "quantize(bits=4)")}


def test_pareto_front_of_each_data_set_and_measure() -> None:
    """Where no context tells them apart, as of a study whose baseline names the data set, or of runs on their own."""
    results = []
    for dataset, skill in (("reviews", 0.5), ("reuters_r8", 0.9)):
        for codec, megabytes in (("fp32", 4.0), ("bf16", 2.0)):
            results.append(made_result({"dataset": dataset, "codec": codec}, 0, skill, megabytes))
    made = Section("", "", results, {"dataset": "reviews", "codec": "fp32"})
    assert {row["method"] for row in build_measures_table(made, "accuracy").data if row["Pareto"]} == {
        "reviews, bf16",
        "reuters_r8, bf16",
    }
    results[0] = replace(results[0], summary={**(results[0].summary or {}), "metric": "skill"})
    assert replace(made, results=results).pareto["reviews, fp32"]


@pytest.mark.parametrize(("skill", "per_point"), [(0.5, 2.0), (0.0, None), (-0.2, None), (None, None)])
def test_numbers_that_are_predicted_worse_than_their_mean_have_no_energy_per_point(
    skill: float | None, per_point: float | None
) -> None:
    summary = {"metric": "skill", "accuracy": skill, "trust": {"energy": {"joules": 100.0}}}
    run = replace(made_result({}, 0, 0.5, 1.0), summary=summary)
    assert BY_KEY["joules_per_point"].value(run) == per_point


def test_cost_counts_rounds_and_bytes_until_the_target() -> None:
    made = section(made_study(1, ("iid",)))
    run = made.shown[0].runs[0]
    first = next(p for p in build_curve(run) if p.accuracy >= 60)
    table = build_cost_table(Section("", "", made.results, made.baseline, targets=(60.0, 99.0)))
    assert table is not None
    row = next(r for r in table.data if r["method"] == "fp32" and r["target_percent"] == 60)
    assert (row["rounds_mean"], row["MB_mean"]) == (first.round, pytest.approx(first.round * 1.6))
    assert row["seconds_mean"] == 2.0 * (first.round + 1)
    assert all(r["reached"] == 0 for r in table.data if r["target_percent"] == 99)


def test_personal_accuracy_is_not_paired_with_shared_test_rows() -> None:
    results = made_study(5, ("iid",))
    for result in results:
        if result.summary and result.point["codec"] == "bf16":
            result.summary.update(shared_accuracy=0.5, accuracy_of=OWN_ROWS)  # type: ignore[attr-defined]
    table = build_comparison_table(section(results))
    assert table is not None
    assert "bf16" not in {r["method"] for r in table.data}


def test_a_report_without_optional_data() -> None:
    bare = [
        Result(config={"codec": c, "seed": 0}, status="finished", seed=0, point={"codec": c}, summary={"accuracy": 0.5})
        for c in ("fp32", "bf16")
    ]
    assert {t.name for t in build_tables(section(bare))} == {"accuracy", "runs"}


def test_client_accuracy_weighs_classes_by_the_clients_shares() -> None:
    scores = {"correct": np.array([1.0, 1.0, 1.0, 0.0])}
    clients = {"labels": np.array([[10.0, 0.0], [0.0, 4.0], [5.0, 5.0]]), "test_labels": np.array([0.0, 0.0, 1.0, 1.0])}
    found = compute_client_accuracy(scores, clients)
    assert found is not None
    assert (found["quantiles"][0], found["quantiles"][4], found["quantiles"][-1]) == (0.5, 0.75, 1.0)
    assert found["worst_tenth"] == 0.5
    assert compute_client_accuracy(scores, {}) is None


@pytest.mark.parametrize("values", [[], [1, 0, 1, 1, 0, 0, 0, 1, 1], [0, 7, 300, 2]])
def test_packed_numbers_come_back(values: list[int]) -> None:
    assert unpack(json.loads(json.dumps(pack(np.array(values, dtype=float))))).tolist() == values


def test_readme_gets_tables_between_its_markers() -> None:
    readme = f"# Study\n\n{TABLE_BEGINS}\nold\n{TABLE_ENDS}\n\nReading.\n"
    made = build_tables(section(made_study(2)))
    once = insert_tables(readme, made)
    assert "old" not in once
    assert once.endswith("Reading.\n")
    assert "| iid: fp32 | 2 |" in once
    assert insert_tables(once, made) == once
    assert insert_tables("no markers", made) == "no markers"


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("accuracy", "Cost of an accuracy: its mean accuracy. Accuracy (nats)"),
        ("skill", "Cost of a skill: its mean skill. Skill (squared deviations)"),
        ("label_accuracy", "Cost of a label accuracy: its mean label accuracy. Label accuracy (nats)"),
        ("perplexity", "Cost of a next-token accuracy: its mean next-token accuracy. Next-token accuracy (nats)"),
    ],
)
def test_headings_say_once_what_runs_are_judged_by(metric, said):
    result = replace(made_result({"method": "a"}, 0, 0.9, 1.0), summary={"metric": metric})
    assert format_heading("Cost of an accuracy: its mean accuracy. Accuracy (nats)", [result]) == said
