"""The registered study: complete settings, margins by rule, one correction for the page, and its false positives."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import insert_part
from experiments.claims.__main__ import CHOICES, MARKS
from experiments.claims.decisions import (
    ALPHA,
    BETTER,
    EQUIVALENT,
    UNDECIDED,
    WORSE,
    PValues,
    compute_power,
    compute_tests,
    correct,
    decide,
)
from experiments.claims.verdicts import Evidence, correct_holm
from experiments.decide import page, verdicts
from experiments.decide.__main__ import (
    MOST_HOURS,
    PAGE,
    compute_limit,
    compute_resolution,
    main,
    make_page,
)
from experiments.decide.registry import (
    NATS,
    RUNS,
    RegisteredClaim,
    Task,
    compute_hours,
    compute_rung,
    read_ladder,
    read_registry,
)
from experiments.decide.simulation import TRUTHS, Pages
from experiments.decide.verdicts import NOT_RUN, decide_all, list_arms, load_results
from experiments.learning_rates import find_tuned_tables, insert_rates
from fedpeft.commands import describe
from fedpeft.errors import RunError
from fedpeft.parts.spec import parse_spec, split_outside_parentheses
from fedpeft.study.results import FINISHED, Result, ResultsFile, pack, unpack
from fedpeft.study.sections import Section
from fedpeft.study.statistics import Uncertainty
from fedpeft.study.study_file import SETTINGS, Study, read_study
from fedpeft.wiring.catalogue import FLAGS
from tests.unit.test_pages import CODE

CLAIMS, TASKS = read_registry()

STUDIES = [study for task in TASKS.values() for study in (task.study, task.tuning)]

TOPICS = {
    "rules",
    "mixed ranks",
    "label skew",
    "PEFT methods",
    "codecs",
    "quantized bases",
    "privacy",
    "personalized or global",
    "robust rules",
    "language model",
}


# --------------------------------------------------------------------------------------------------------- the settings


def find_unstated(flag: str, text: str) -> list[str]:
    """Return the settings of the parts in a text that are left to a default, or to what suits."""
    found = []
    joined = FLAGS[flag].joined
    for part in split_outside_parentheses(text, joined.strip()) if joined else [text]:
        spec = parse_spec(part.strip())
        cls = next(family.part(spec.name) for family in FLAGS[flag].families if spec.name in family.names)
        found += [f"{flag} {spec.name}.{f.name}" for f in dataclasses.fields(cls) if f.name not in spec.settings]
        found += [f"{flag} {spec.name}.{name}" for name, value in spec.settings.items() if value == "auto"]
    return found


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: f"{study.path.parent.name}-{study.preset}")
def test_a_study_leaves_no_setting_to_its_default(study: Study) -> None:
    given = {*study.base, "seed"}
    for values in study.axes.values():
        assert len({tuple(sorted(value.settings)) for value in values}) == 1
        given |= set(values[0].settings)
    assert given == set(SETTINGS)
    for run in study.plan_runs():
        for name, value in vars(run.config).items():
            assert value != "auto", f"{name} of {run.title}"
            flag = {"downlink": "codec"}.get(name, name.replace("_", "-"))
            if flag in FLAGS and name != "cohort" and value:
                assert find_unstated(flag, str(value)) == []


def test_what_is_left_to_a_default_is_found() -> None:
    assert find_unstated("peft", "lora(rank=8, alpha=32, targets='all', layers=4)") == ["peft lora.dropout"]
    assert find_unstated("strategy", "fedit(weighting='auto')") == ["strategy fedit.weighting"]
    assert find_unstated("codec", "cast(dtype='fp32') | zstd") == ["codec zstd.level"]


def find_edge_rates(task: Task) -> dict[str, list[float]]:
    """Return the rates beyond the grid that a task's methods have tried (rule 9 of the design), by label."""
    if "edge" not in tomllib.loads(task.study.path.read_text(encoding="utf-8"))["presets"]:
        return {}
    edge = read_study(task.study.path, "edge")
    rates = [value.settings["learning_rate"] for value in edge.axes["learning_rate"]]
    return {value.label: rates for value in edge.axes["method"]}


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_rates_are_tuned_inside_a_grid_on_a_seed_of_their_own(task: Task) -> None:
    grid = [value.settings["learning_rate"] for value in task.tuning.axes["learning_rate"]]
    assert len(grid) >= 4
    assert grid == sorted(grid)
    assert not set(task.tuning.seeds) & set(task.study.seeds)
    methods = [value.label for value in task.study.axes["method"]]
    assert methods == [value.label for value in task.tuning.axes["method"]]
    beyond = find_edge_rates(task)
    for value in task.study.axes["method"]:
        tried = grid + beyond.get(value.label, [])
        assert min(tried) < value.settings["learning_rate"] < max(tried)
    for run, tried in zip(task.study.plan_runs(), task.tuning.plan_runs()[:: len(grid)], strict=False):
        chosen = ("learning_rate", "optimizer", "rounds", "seed", "measure")
        assert dataclasses.replace(tried.config, **{name: getattr(run.config, name) for name in chosen}) == run.config


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_best_rates_reach_the_deciding_runs(task: Task, tmp_path: Path) -> None:
    text = task.study.path.read_text(encoding="utf-8")
    rates = [value.label for value in task.tuning.axes["learning_rate"]]
    methods = [value.label for value in task.study.axes["method"]]
    best = dict(zip(methods, itertools.cycle(rates[1:-1]), strict=False))
    (tmp_path / "study.toml").write_text(insert_rates(text, best, find_tuned_tables(text, "tuning")))
    heads = set()
    for value in read_study(tmp_path / "study.toml").axes["method"]:
        assert value.settings["learning_rate"] == float(best[value.label])
        if "optimizer" in value.settings:
            heads.add(round(built_head_rate(value.settings["optimizer"]) * float(best[value.label]), 6))
    assert len(heads) <= 1
    assert read_study(tmp_path / "study.toml", "tuning").axes == task.tuning.axes


def built_head_rate(text: str) -> float:
    """Return the head's rate in an optimizer's text, relative to the learning rate."""
    return float(parse_spec(text).settings["head_rate"])


def test_no_deciding_run_is_committed_elsewhere() -> None:
    """Margins and claims were chosen next to committed results, whose seeds are below 1000."""
    assert min(min(study.seeds) for study in STUDIES) >= 1000


# ----------------------------------------------------------------------------------------------------------- the claims


def test_there_are_24_claims_on_all_topics_and_at_most_four_of_a_language_model() -> None:
    assert len(CLAIMS) == 24
    assert {claim.topic for claim in CLAIMS} == TOPICS
    assert sum(TASKS[claim.study].measure == NATS for claim in CLAIMS) <= 4
    assert len({(claim.study, claim.method, claim.baseline) for claim in CLAIMS}) == 24
    for claim in CLAIMS:
        labels = {value.label for value in TASKS[claim.study].study.axes["method"]}
        assert {claim.method, claim.baseline} <= labels
        assert claim.direction in ("better", "no worse")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.number)
def test_a_claim_names_its_part_and_what_each_possible_verdict_means(claim: RegisteredClaim) -> None:
    words = {BETTER, WORSE, UNDECIDED} | ({EQUIVALENT} if TASKS[claim.study].margin is not None else set())
    assert set(claim.means) == words
    assert len(set(claim.means.values())) == len(words)
    assert any(claim.part in family.names for family in FLAGS[claim.flag].families)
    study = TASKS[claim.study].study
    arm = next(run.config for run in study.plan_runs() if run.point["method"] == claim.method)
    assert parse_spec(str(getattr(arm, claim.flag))).name == claim.part


def test_no_arm_is_trained_for_nothing() -> None:
    for task in TASKS.values():
        used = {label for c in CLAIMS if c.study == task.name for label in (c.method, c.baseline)}
        assert {value.label for value in task.study.axes["method"]} == used


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_margin_keeps_its_rule(task: Task) -> None:
    limit, resolved = compute_limit(task), compute_resolution(task)
    if task.margin is None:
        assert limit is None or resolved > limit
    else:
        assert limit is not None
        assert resolved <= task.margin <= limit


def test_only_tasks_where_the_pooled_adapter_is_five_points_above_the_probe_are_used() -> None:
    tasks = {line["task"] for line in read_ladder() if line["rung"] == "pooled adapter"}
    gains = {task: 100 * (compute_rung(task, "pooled adapter") - compute_rung(task, "probe")) for task in tasks}
    assert {task for task, gain in gains.items() if gain >= 5} == {"reviews", "code_types"}
    assert gains["fashion_mnist"] == pytest.approx(4.4, abs=0.05)
    assert {task.ladder for task in TASKS.values() if task.measure != NATS} == {"reviews", "code_types"}


def test_the_hours_fit_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    hours = sum(sum(compute_hours(task)) for task in TASKS.values())
    assert hours <= MOST_HOURS
    assert main(["--dry-run"]) == 0
    assert f"| {hours:.1f} |" in capsys.readouterr().out.splitlines()[-1]


def test_the_design_has_the_numbers_of_the_committed_results() -> None:
    before = PAGE.read_text(encoding="utf-8")
    assert make_page(before) == before
    hypotheses = len(CLAIMS) + sum(TASKS[claim.study].margin is not None for claim in CLAIMS)
    assert f"all {hypotheses} hypotheses" in before


# --------------------------------------------------------------------------------------------------------- the verdicts


def test_the_tests_of_seeds_alone_are_students() -> None:
    by_seed = np.array([0.2, 0.5, -0.1, 0.4, 0.3, 0.2])
    found = compute_tests(Evidence(by_seed), 1.0)
    assert found.no_difference == pytest.approx(stats.ttest_1samp(by_seed, 0.0).pvalue)
    above = stats.ttest_1samp(by_seed, 1.0, alternative="less").pvalue
    below = stats.ttest_1samp(by_seed, -1.0, alternative="greater").pvalue
    assert found.beyond_margin == pytest.approx(max(above, below))
    assert compute_tests(Evidence(by_seed), 0.1).beyond_margin == 1.0
    assert compute_tests(Evidence(by_seed[:4]), 1.0) == PValues(1.0, 1.0)


def test_a_claim_keeps_its_place_in_the_count_while_one_of_its_hypotheses_may_be_true() -> None:
    page = [PValues(0.02, 1e-9)] * 3
    assert [t.no_difference for t in correct(page)] == pytest.approx([0.06, 0.06, 0.06])
    page[0] = PValues(1e-6, 1e-9)
    assert [t.no_difference for t in correct(page)] == pytest.approx([3e-6, 0.04, 0.04])


def test_with_one_hypothesis_each_the_correction_is_holms() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        p = draw.uniform(0, 0.2, 6).tolist()
        assert [t.no_difference for t in correct([PValues(one, None) for one in p])] == pytest.approx(correct_holm(p))


def test_the_correction_counts_all_sets_of_true_hypotheses() -> None:
    """Step down by hand: the multiplier is the largest number of those left that can be true at once."""
    draw = np.random.default_rng(1)
    for _ in range(50):
        page = [PValues(*draw.uniform(0, 0.1, 2).tolist()) for _ in range(3)]
        names = sorted(itertools.product(range(3), (0, 1)), key=lambda name: _probability(page, name))
        rejected = set()
        for place, name in enumerate(names):
            left = names[place:]
            most = max(len({c for c, _ in s}) for s in _possible(left))
            if _probability(page, name) * most >= ALPHA:
                break
            rejected.add(name)
        found = correct(page)
        assert {n for n in names if _probability(found, n) < ALPHA} == rejected


def _probability(page: list[PValues], name: tuple[int, int]) -> float:
    return float((page[name[0]].no_difference, page[name[0]].beyond_margin)[name[1]] or 0.0)


def _possible(names: list[tuple[int, int]]) -> list[tuple[tuple[int, int], ...]]:
    subsets = itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(1, len(names) + 1))
    return [s for s in subsets if len({c for c, _ in s}) == len(s)]


def test_both_verdicts_are_said_where_both_hold() -> None:
    assert decide(0.3, PValues(0.01, 0.01)) == (BETTER, EQUIVALENT)
    assert decide(-0.3, PValues(0.01, 0.2)) == (WORSE,)
    assert decide(0.1, PValues(0.2, 0.01)) == (EQUIVALENT,)
    assert decide(0.1, PValues(0.2, None)) == (UNDECIDED,)


def test_power_is_that_of_simulated_means() -> None:
    seeds, deviation, margin, count = 10, 0.5, 1.0, 24
    uncertainty = Uncertainty(((deviation**2 / seeds, seeds - 1),))
    least, equivalence = compute_power(uncertainty, count, margin)
    draw = np.random.default_rng(0)

    def share_rejected(mean: float, beyond: bool) -> float:
        pages = [compute_tests(Evidence(draw.normal(mean, deviation, seeds)), margin) for _ in range(2000)]
        found = [(t.beyond_margin or 0.0) if beyond else t.no_difference for t in pages]
        return float(np.mean(np.array(found) < ALPHA / count))

    assert share_rejected(0.0, True) == pytest.approx(equivalence, abs=0.08)
    assert share_rejected(least, False) == pytest.approx(0.8, abs=0.08)
    assert np.isnan(compute_power(uncertainty, count, None)[1])


def make_sections(left_out: str = "") -> dict[str, Section]:
    """Return made results of all tasks: each arm is as good as its baseline, but fedex_lora is 10 points better."""
    draw, sections = np.random.default_rng(0), {}
    for task in TASKS.values():
        results = []
        for run in task.study.plan_runs():
            if run.title == left_out:
                continue
            label, noise = run.point["method"], float(draw.normal(0, 0.001))
            right = (np.arange(1000) < 800 + 100 * label.endswith("fedex_lora") + draw.integers(-2, 3)).astype(float)
            own = {"calibration": {"clients": {"before": {"accuracy": 0.7 + noise}}}}
            results.append(
                Result(
                    config=dict(vars(run.config)),
                    status=FINISHED,
                    seed=run.config.seed,
                    point=dict(run.point),
                    summary={"metric": "accuracy", "trust": own, "baseline_accuracy": 0.6},
                    correct=pack(right),
                    loss=pack(5 - right + 0.01 * draw.normal(size=1000)) if task.measure == NATS else None,
                )
            )
        sections[task.name] = Section(task.name, "", results, {"method": task.study.axes["method"][0].label})
    return sections


def test_made_results_get_their_verdicts() -> None:
    found = {one.claim.number: one for one in decide_all(make_sections())}
    assert found[1].verdicts == found[23].verdicts == (BETTER,)
    assert found[1].evidence.difference == pytest.approx(10, abs=0.3)
    assert found[23].evidence.difference == pytest.approx(0.1, abs=0.01)
    assert found[21].verdicts == found[4].verdicts == (EQUIVALENT,)
    assert found[21].evidence.difference == pytest.approx(0, abs=0.2)
    assert found[12].verdicts == found[24].verdicts == (UNDECIDED,)


def test_a_task_with_a_missing_run_gives_no_verdict() -> None:
    """The other tasks get theirs; p = 1 stands for what is missing."""
    found = decide_all(make_sections("dora, seed 1003"))
    assert {one.task.name for one in found if one.verdicts == (NOT_RUN,)} == {"code_types"}
    for one in found:
        if one.task.name == "code_types":
            assert (one.evidence, one.interval, one.is_decided) == (None, None, False)
            assert one.tests == one.corrected == PValues(1.0, 1.0)


def test_a_verdict_once_given_stays() -> None:
    """Tasks finish one after another, in two orders; each stage's verdicts are among those of the next."""
    sections = make_sections()
    for names in (list(TASKS), list(TASKS)[::-1]):
        before: list[set[str]] = [set() for _ in CLAIMS]
        for count in range(len(names) + 1):
            page = decide_all({name: sections[name] for name in names[:count]})
            words = [set(one.verdicts) - {NOT_RUN, UNDECIDED} for one in page]
            assert all(early <= late for early, late in zip(before, words, strict=True))
            assert {one.task.name for one in page if one.evidence} == set(names[:count])
            before = words
        assert sum(map(bool, before)) > 12


def test_untested_hypotheses_only_strengthen_the_correction() -> None:
    """Decisions with p = 1 for some claims are among those with any values in their place."""
    draw = np.random.default_rng(2)
    gained = 0
    for _ in range(3000):
        scale = 10 ** draw.uniform(-4, 0, 6)
        page = [
            PValues(float(draw.uniform(0, s)), float(draw.uniform(0, s)) if draw.uniform() < 0.6 else None)
            for s in scale
        ]
        run = draw.uniform(size=6) < 0.5
        part = [
            p if r else PValues(1.0, None if p.beyond_margin is None else 1.0) for p, r in zip(page, run, strict=True)
        ]
        for early, late in zip(_list_corrected(part), _list_corrected(page), strict=True):
            assert late <= early
            gained += late < ALPHA <= early
    assert gained > 100


def _list_corrected(page: list[PValues]) -> list[float]:
    return [p for one in correct(page) for p in (one.no_difference, one.beyond_margin) if p is not None]


def test_records_hold_verdicts_and_their_registered_meaning() -> None:
    records = [page.make_record(one) for one in decide_all(make_sections("dora, seed 1003"))]
    first, eleventh, seventeenth = records[0], records[10], records[16]
    assert (first["status"], first["verdicts"], first["means"]) == ("decided", [BETTER], CLAIMS[0].means[BETTER])
    low, high = first["interval"]
    assert low < first["difference"] < high
    assert first["seeds"] == list(range(1000, 1010))
    assert first["corrected_p"]["no_difference"] == pytest.approx(24 * first["p"]["no_difference"], rel=0.01)
    assert (eleventh["status"], eleventh["margin"]) == (UNDECIDED, None)
    assert eleventh["means"] == CLAIMS[10].means[UNDECIDED]
    assert (seventeenth["status"], seventeenth["verdicts"], seventeenth["difference"]) == (NOT_RUN, [], None)
    assert {note["part"] for note in page.make_notes(records)} == {r["part"] for r in records if r["verdicts"]}
    assert len(page.make_notes(records)) == 20


def test_a_claim_with_two_verdicts_has_the_meaning_of_the_weaker_one() -> None:
    one = dataclasses.replace(decide_all(make_sections())[2], corrected=PValues(0.01, 0.01))
    record = page.make_record(one)
    assert record["verdicts"][1] == EQUIVALENT
    assert record["means"] == f"{page.BELOW_MARGIN} {CLAIMS[2].means[EQUIVALENT]}"
    assert page.format_choices([record]).count("`ffa_lora`") == 2


def test_the_page_leads_with_verdicts_and_ends_with_what_was_not_run() -> None:
    records = [page.make_record(one) for one in decide_all(make_sections("dora, seed 1003"))]
    text = page.format_section(records, [])
    verdicts, waiting = text.split("## Not run yet")
    assert "study: 24. Decided: 16. Undecided: 4. Not run yet: 4." in verdicts
    rows = [line.split(" | ") for line in verdicts.splitlines() if line.startswith("| **")]
    assert [row[0] for row in rows[-4:]] == ["| **undecided**"] * 4
    assert rows[0][:2] == ["| **better**", CLAIMS[0].means[BETTER]]
    assert f"| {sum(compute_hours(TASKS['code_types'])):.1f} |" in waiting
    assert [line[2:4] for line in waiting.splitlines() if line.startswith("| 1") or line.startswith("| 2")] == [
        "17", "18", "19", "20"
    ]  # fmt: skip


def test_each_arm_of_a_finished_task_stands_next_to_the_probe() -> None:
    sections = make_sections("dora, seed 1003")
    [first, *_], own, nats = (
        [arm for arm in list_arms(sections) if arm.task.name == name]
        for name in ("reviews_attack", "code_types_own", "shakespeare")
    )
    results = [r for r in sections["reviews_attack"].results if r.point["method"] == first.label]
    accuracies = [100 * float(unpack(r.correct).mean()) for r in results]
    assert first.by_seed == pytest.approx(accuracies)
    assert first.probe == pytest.approx(60)
    assert {arm.probe for arm in own + nats} == {None}
    assert own[0].by_seed == pytest.approx([70] * 8, abs=1)
    assert nats[0].by_seed == pytest.approx([4.2] * 6, abs=0.2)
    assert "code_types" not in {arm.task.name for arm in list_arms(sections)}
    record = page.make_arm_record(first)
    pooled = 100 * compute_rung("reviews", "pooled adapter")
    shown = f"{record['mean']:.1f} ± {record['deviation']:.1f} | 60.0 | {pooled:.1f}"
    assert f"| `{first.label}` | accuracy | {shown} |" in page.format_section(
        [page.make_record(one) for one in decide_all(sections)], [record]
    )


def test_the_figure_has_each_verdict_and_interval_and_the_margins() -> None:
    records = [page.make_record(one) for one in decide_all(make_sections("dora, seed 1003"))]
    texts = re.findall(r"<!-- (.*?) -->", page.draw(records))
    for record in records:
        assert (f"{record['number']}. {record['method']}" in texts) == bool(record["verdicts"])
        if record["verdicts"]:
            assert {page.format_verdict(record), page.format_difference(record)} <= set(texts)
    assert "reviews: difference in points (margin 1.1)" in texts


def test_all_verdicts_fit_on_the_page_of_settings_and_are_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [page.make_record(one) for one in decide_all(make_sections())]
    choices = insert_part(CHOICES, MARKS, page.format_choices(records))
    assert len(CODE.sub("", choices).split()) <= 1500
    (tmp_path / "verdicts.json").write_text(json.dumps(page.make_notes(records)), encoding="utf-8")
    monkeypatch.setattr(describe, "VERDICTS", tmp_path / "verdicts.json")
    for part, numbers in {"median": [11], "fedex_lora": [1, 23], "nf4": [8], "fedit": []}.items():
        assert describe.main([part]) == 0
        printed = capsys.readouterr().out
        assert ("verdicts of the registered study" in printed) == bool(numbers)
        for claim in CLAIMS:
            is_shown = any(f". {meaning}" in printed for meaning in claim.means.values())
            assert is_shown == (claim.number in numbers)


def test_a_pair_of_runs_without_its_measure_is_refused() -> None:
    sections = make_sections()
    results = sections["reviews_attack"].results
    assert isinstance(results, list)
    results[7] = dataclasses.replace(results[7], correct=None)
    with pytest.raises(RunError, match="of 11 pairs of runs, not of all 12 seeds"):
        decide_all(sections)


def test_the_command_prints_a_line_per_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path, make_sections("krum, scaled, seed 1004"), ["reviews", "reviews_attack"])
    monkeypatch.setattr(verdicts, "load_results", lambda: load_results(tmp_path))
    assert verdicts.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CLAIMS) + 1
    assert lines[0].startswith(" 1 better: fedex_lora against fedit, +9.9")
    assert lines[10] == "11 not run yet: median, sign flip against fedit, sign flip, reviews_attack has 59 of 60 runs"
    assert lines[23].endswith("shakespeare has 0 of 18 runs")
    assert lines[24] == "10 of 10 claims with results are decided, of 24"


def write_results(folder: Path, sections: dict[str, Section], names: list[str]) -> None:
    """Write results of tasks as a study leaves them."""
    for name in names:
        (folder / name).mkdir()
        (folder / name / "study.toml").write_bytes(TASKS[name].study.path.read_bytes())
        for result in sections[name].results:
            ResultsFile(folder / name / "results.jsonl").append(dataclasses.replace(result, preset=RUNS))


@pytest.mark.medium
@pytest.mark.parametrize("truth", TRUTHS)
def test_at_most_one_page_in_twenty_has_a_false_verdict(truth: str) -> None:
    assert Pages().count_false(truth, pages=150, seed=0) <= ALPHA * 150


@pytest.mark.medium
def test_without_the_correction_more_pages_have_one() -> None:
    assert Pages(corrected=False).count_false("no difference", pages=40, seed=0) > ALPHA * 40
