"""A report of single runs: names, data sets that are never mixed, the sentence at the top, previews and early ends."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from fedpeft.commands.report import Command, create_sections
from fedpeft.reporting.user_files import OwnFile
from fedpeft.study.measures import TABLES
from fedpeft.study.outcomes import describe_section_outcome
from fedpeft.study.page import PageSection, render_page
from fedpeft.study.result_folders import ResultFolders
from fedpeft.study.results import Result, ResultsFile
from fedpeft.study.run_names import name_groups
from fedpeft.study.sections import Section, create_runs_section, split_by_data
from tests.studies.made import made_result, made_study


def run(folder: str, skill: float = 0.7, seed: int = 0, megabytes: float = 2.0, **settings: Any) -> Result:
    """Return a made-up single run in a folder; `summary` changes its summary."""
    changes = settings.pop("summary", {})
    made = made_result({}, seed, skill, megabytes)
    summary = {**(made.summary or {}), **changes}
    return dataclasses.replace(
        made, study="", config={**made.config, **settings}, summary=summary, folder=f"/home/me/runs/{folder}"
    )


def language_run(folder: str, perplexity: float, megabytes: float = 2.0) -> Result:
    found = {"metric": "perplexity", "perplexity": perplexity, "baseline_accuracy": None}
    return run(folder, 0.3, megabytes=megabytes, dataset="stories", codec=folder, summary=found)


def sections(*runs: Result, **flags: Any) -> list[Section]:
    return create_sections(ResultFolders({("", ""): list(runs)}), Command((), **flags))


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/r/20260102-1015-reviews-fedit"], ["20260102-1015-reviews-fedit"]),
        (["/r/reviews-lora-r4", "/r/reviews-lora-r16"], ["r4", "r16"]),
        (["/r/20260102-1015-reviews-fedit", "/r/20260102-1020-news-krum"], ["1015-reviews-fedit", "1020-news-krum"]),
        (["/r/run-1", "/r/run-2"], ["run-1", "run-2"]),
        (["/r/fedit", "/r/fedit-2"], ["fedit", "fedit-2"]),
        (["/r/one/run", "/r/two/run"], ["one/run", "two/run"]),
        ([], []),
    ],
)
def test_names_are_folders_without_the_words_that_all_share(folders: list[str], names: list[str]) -> None:
    assert name_groups([[folder] for folder in folders]) == names


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ([["fedit-0", "fedit-1"], ["krum"]], ["fedit", "krum"]),
        ([["fedit-10", "fedit-11"]], ["fedit"]),
        ([["try-fedit-s0", "try-fedit-s1"], ["try-krum-s0", "try-krum-s1"]], ["fedit", "krum"]),
        ([["one", "two"], ["x-1", "x-2"], ["x-3", "x-4"]], ["one and 1 more", "x-1 and 1 more", "x-3 and 1 more"]),
    ],
)
def test_runs_that_differ_in_their_seed_have_one_name(groups: list[list[str]], names: list[str]) -> None:
    assert name_groups(groups) == names


def test_methods_are_named_after_folders_and_a_table_shows_their_settings() -> None:
    path = "file(path='/a/long/path/to/reviews.csv')"
    runs = [
        run(f"try-{rule}-s{seed}", seed=seed, strategy=rule, dataset=path)
        for rule in ("fedit", "krum")
        for seed in (0, 1)
    ]
    [section] = sections(*runs)
    assert [m.name for m in section.methods] == ["fedit", "krum"]
    made = PageSection.from_section(section)
    [settings] = [t for t in made.tables if t.name == "settings"]
    assert settings.shown == (("fedit", "fedit"), ("krum", "krum"))
    [comparison] = [t for t in made.tables if t.name == "comparisons"]
    assert comparison.title == "Compared with the baseline (fedit)"
    text = render_page("page", [made], [], "csv")
    assert "/home/me" not in text
    assert path not in re.sub("<details>.*?</details>", "", text, flags=re.DOTALL)


def test_a_page_of_one_run_has_its_name_and_says_what_it_is() -> None:
    [section] = sections(run("my-run", dataset="reviews"))
    assert section.title == "my-run"
    fields = PageSection.from_section(section).build_page_fields(1)
    assert str(fields["extent"]).startswith("reviews, fedit, ")


def test_runs_on_other_data_or_with_another_metric_share_no_section() -> None:
    skill = run("number", dataset="reviews", strategy="krum", summary={"metric": "skill"})
    made = sections(
        run("a", dataset="reviews"), run("b", dataset="news"), skill, run("c", dataset="news", strategy="krum")
    )
    assert [s.title for s in made] == ["reviews, accuracy: a", "news", "reviews, skill: number"]
    assert [[m.name for m in s.methods] for s in made] == [["a"], ["b", "c"], ["number"]]
    headings = [{h for t in PageSection.from_section(s).tables for h in t.headings} for s in made]
    assert not any("test accuracy (%)" in h and "test skill (%)" in h for h in headings)


def test_a_file_whose_content_has_changed_is_another_data_set() -> None:
    data = "file(path='a.csv')"
    old, new = (
        dataclasses.replace(run(name, dataset=data), made_of=(OwnFile("minilm", None), OwnFile("a.csv", 64 * digest)))
        for name, digest in (("old", "a"), ("new", "b"))
    )
    unknown = run("unknown", dataset=data, strategy="krum")
    made = sections(unknown, old, new)
    assert [s.title for s in made] == ["a.csv, content 1", "a.csv, content 2: new"]
    assert [m.name for m in made[0].methods] == ["unknown", "old"]


def test_a_study_over_data_sets_has_a_section_and_a_front_for_each() -> None:
    results = [made_result({"dataset": data, "codec": codec}, 0, skill, size)
               for data, skill in (("reviews", 0.9), ("news", 0.5))
               for codec, size in (("fp32", 4.0), ("bf16", 2.0))]  # fmt: skip
    parts = split_by_data(Section("both", "", results, {"codec": "fp32"}))
    assert [part.title for part in parts] == ["both: reviews", "both: news"]
    assert [list(part.pareto.values()) for part in parts] == [[False, True]] * 2
    assert split_by_data(parts[0]) == [parts[0]]


def test_every_measure_has_a_table_and_no_table_mixes_metrics() -> None:
    keys = [key for _, measures in TABLES.values() for key in measures]
    assert len(keys) == len(set(keys))
    [section] = sections(run("a", strategy="a"), run("b", strategy="b"))
    tables = {t.name: t.headings for t in PageSection.from_section(section).tables}
    assert "test loss (nats)" not in tables["accuracy"]
    assert tables["loss"] == ("method", "seeds", "test loss (nats)")


def test_language_models_are_compared_by_perplexity() -> None:
    """The lower one is on the front, and the axes of figures and tables are named after it."""
    [section] = sections(language_run("fp32", 3.5, 8.0), language_run("bf16", 3.6, 4.0), language_run("sign", 9.0, 6.0))
    assert section.pareto == {"fp32": True, "bf16": True, "sign": False}
    made = PageSection.from_section(section)
    assert made.tables[0].title == "Test perplexity"
    assert made.figures[0].title == "Perplexity and bytes"
    for figure in made.figures[:2]:
        words = re.findall(r"<!-- (.*?) -->", figure.svg)
        assert "accuracy" not in " ".join(words)
    assert "validation perplexity" in re.findall(r"<!-- (.*?) -->", made.figures[1].svg)


def test_the_first_sentence_compares_the_best_method_with_the_probe() -> None:
    [section] = sections(run("a", 0.6, strategy="a"), run("b", 0.9, strategy="b"))
    said = describe_section_outcome(section)
    assert said.startswith("Of 2 methods, b is best: the test accuracy of the saved adapter, ")
    assert "points above that of the frozen base model's linear probe, 50.0%." in said
    [lone] = sections(run("a", 0.3))
    assert describe_section_outcome(lone).startswith("The test accuracy of the saved adapter, ")
    assert "points below" in describe_section_outcome(lone)


def test_without_a_probe_the_first_sentence_says_so() -> None:
    [section] = sections(language_run("fp32", 3.5))
    assert describe_section_outcome(section) == (
        "The test perplexity of the saved adapter is 3.50; the run has no linear probe on the same examples."
    )


def test_a_sample_is_a_preview_and_no_run_on_all_examples_stands_beside_it() -> None:
    sample = "sample(of='reviews', rows=1000, test_rows=500)"
    made = sections(run("quick", dataset=sample, summary={"sampled": True}), run("whole", dataset="reviews"))
    assert [s.title for s in made] == ["reviews (sample): quick", "reviews: whole"]
    assert [s.is_preview for s in made] == [True, False]
    assert describe_section_outcome(made[0]).startswith("Preview on a sample: the test accuracy")
    texts = [render_page("page", [PageSection.from_section(s)], [], "csv") for s in made]
    assert ["<b>Preview</b>" in text for text in texts] == [True, False]


def test_a_run_that_ended_early_says_so() -> None:
    early = run("early", rounds=20, strategy="a", summary={"rounds": 5, "ended_early": "nothing has improved"})
    whole = run("whole", rounds=20, strategy="b", summary={"rounds": 20})
    [lone] = sections(early)
    assert lone.early_ends == ["The run ended after 5 of 20 rounds. Reason: nothing has improved"]
    [both] = sections(early, whole)
    assert both.early_ends == ["early, seed 0, ended after 5 of 20 rounds. Reason: nothing has improved"]
    text = render_page("page", [PageSection.from_section(both)], [], "csv")
    assert text.index("Ended early") < text.index("<svg")


@pytest.mark.parametrize("count", [1, 2])
def test_the_main_figure_comes_before_every_table(count: int) -> None:
    made = [PageSection.from_section(Section("study", "", made_study(1, ("iid",)), {"codec": "fp32"}))] * count
    text = render_page("page", made, [], "csv")
    assert text.index('class="outcome"') < text.index("<svg") < text.index("<table")
    assert made[0].figures[0].name == "accuracy_bytes"
    assert "computed per dataset" in made[0].figures[0].note


def test_a_folder_is_no_part_of_a_line_of_results(tmp_path: Any) -> None:
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(run("secret"))
    assert "home" not in file.path.read_text()
    assert file.read()[0].folder == ""


def test_a_baseline_applies_to_the_data_sets_that_have_it() -> None:
    runs = [run(f"{data}-{rule}", dataset=data, strategy=rule) for data in ("reviews", "news") for rule in ("a", "b")]
    made = sections(*runs, run("other", dataset="other"), baseline="strategy=b")
    assert [s.baseline.get("strategy") for s in made] == ["b", "b", None]
    assert [m.name for s in made[:1] for m in s.shown if s.find_reference(m) is m] == ["b"]


def test_results_without_folders_keep_their_labels() -> None:
    results = [dataclasses.replace(run("x", strategy=rule), folder="") for rule in ("a", "b")]
    assert [m.name for m in create_runs_section(results).methods] == ["a", "b"]
