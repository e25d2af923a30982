"""Adapters against full fine-tuning: the registered comparisons, their correction, and equal tuning."""

import dataclasses

import numpy as np
import pytest

from experiments.peft_or_full import __main__ as command
from experiments.peft_or_full.__main__ import (
    ADAPTERS,
    COMPARISONS,
    FOLDER,
    FULL,
    LANGUAGE_ADAPTERS,
    Line,
    choose_verdicts,
    compare_few,
    compare_language,
    compare_private,
    compare_spreads,
    compare_values,
    count_rounds,
    group_runs,
)
from fedpeft.study.results import Result, ResultsFile
from fedpeft.study.study_file import read_study

NUMBERS = ("60", "300", "3000")
SEEDS = range(8)


def result(point, seed, accuracy, curve=(0.5, 0.6), lost=0.0, loss=0.0):
    """Return a finished run with a curve of validation accuracies, beginning before round 1."""
    rounds = tuple(
        {"round": n, "accuracy": a, "loss": 1.0, "uplink_bytes": 0, "downlink_bytes": 0, "seconds": 1.0}
        for n, a in enumerate(curve)
    )
    summary = {"accuracy": accuracy, "loss": loss, "forgetting": {"lost": lost}}
    return Result({"seed": seed, **point}, "finished", seed, point=point, summary=summary, rounds=rounds)


def few():
    """Return runs in which only lora differs: better with 60 examples, slower, twice as scattered, forgets less."""
    noise = np.random.default_rng(0).normal(size=(5, 4, 8)) / 1000
    runs = []
    for i, method in enumerate((*ADAPTERS, FULL)):
        for j, rows in enumerate(NUMBERS):
            for seed in SEEDS:
                lora = method == "lora"
                accuracy = 0.8 + (1 + 9 * lora) * noise[i, j, seed] + 0.2 * (lora and rows == "60")
                curve = (0.5, 0.5, 0.5 + 0.01 * seed, 0.7) if lora else (0.5, 0.6 + noise[4, j, seed], 0.7, 0.7)
                lost = (0.01 if lora else 0.06) + noise[i, j, seed]
                runs.append(result({"method": method, "rows": rows}, seed, accuracy, curve, lost))
    return group_runs(runs, ("method", "rows"))


def test_each_question_about_few_examples_finds_the_method_that_differs():
    lines = list(compare_few(few()))
    verdicts = dict(
        zip([(line.question.split()[0], line.method) for line in lines], choose_verdicts(lines), strict=True)
    )
    assert verdicts.pop(("accuracy", "lora")) == "higher"
    assert verdicts.pop(("rounds", "lora")) == "higher"
    assert verdicts.pop(("deviation", "lora")) == "higher"
    assert verdicts.pop(("forgotten", "lora")) == "lower"
    assert set(verdicts.values()) == {"undecided"}


def test_the_table_of_values_has_means_and_deviations_over_seeds():
    runs = few()
    table = command.build_values_table(runs)
    at = list(table.columns[0].cells).index(FULL)
    values = [100 * run.summary["accuracy"] for run in runs[FULL, "60"].values()]
    assert list(table.columns[1].cells)[at] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    lost = [100 * run.summary["forgetting"]["lost"] for run in runs[FULL, "3000"].values()]
    assert list(table.columns[4].cells)[at] == f"{np.mean(lost):.1f}"


def test_a_run_that_never_gets_there_counts_with_one_round_more():
    runs = group_runs(
        [
            result({"method": FULL, "rows": "60"}, 0, 0.7, (0.5, 0.7)),
            result({"method": "lora", "rows": "60"}, 0, 0.5, (0.5, 0.5, 0.59)),
        ],
        ("method", "rows"),
    )
    assert count_rounds(runs, "lora", "60") == {0: 3.0}
    assert count_rounds(runs, FULL, "60") == {0: 1.0}


def test_no_level_exists_where_full_fine_tuning_gains_nothing():
    runs = group_runs([result({"method": FULL, "rows": "60"}, 0, 0.4, (0.5, 0.4))], ("method", "rows"))
    assert count_rounds(runs, FULL, "60") is None


def test_the_cost_of_privacy_is_open_minus_private():
    runs = []
    for seed in SEEDS:
        for method in (*ADAPTERS, FULL):
            cost = 0.02 if method == "lora" else 0.1
            open_ = 0.8 + 0.001 * seed
            runs.append(result({"method": method}, seed, open_))
            runs.append(
                result({"method": f"{method}, epsilon 8"}, seed, open_ - cost - (method == FULL) * 0.001 * (-1) ** seed)
            )
    lines = list(compare_private(group_runs(runs, ("method",))))
    assert [line.method for line in lines] == list(ADAPTERS)
    assert lines[0].difference == pytest.approx(-8.0)
    assert lines[1].difference == pytest.approx(0.0)


def test_all_registered_comparisons_are_made():
    language = []
    for seed in SEEDS:
        for method in (*LANGUAGE_ADAPTERS, FULL):
            for task in ("instructions", "arithmetic"):
                loss = 0.5 + 0.1 * (method == "ia3") + 0.001 * seed * len(method)
                language.append(result({"method": method, "task": task}, seed, 0.0, lost=loss, loss=loss))
    lines = list(compare_language(group_runs(language, ("method", "task"))))
    assert [line.difference > 0.09 for line in lines] == [False, True] * 4
    assert len(lines) + len(list(compare_few(few()))) + len(ADAPTERS) == COMPARISONS


def test_comparisons_that_were_not_run_count_in_the_correction():
    lines = [Line("", "lora", -1.0, 0.1, 0.004), Line("", "ia3", 1.0, 0.1, 0.011)]
    assert choose_verdicts(lines, 2) == ["lower", "higher"]
    assert choose_verdicts(lines, 6) == ["lower", "undecided"]
    assert choose_verdicts(lines, 23) == ["undecided", "undecided"]


def test_equal_spreads_are_told_from_unequal_ones():
    draw = np.random.default_rng(1).normal(size=(2, 4, 8))
    one, other = ([dict(enumerate(cell)) for cell in each] for each in draw)
    wide = [{seed: 5 * value for seed, value in cell.items()} for cell in one]
    assert compare_spreads("", "", one, other).p > 0.05
    found = compare_spreads("", "", wide, other)
    assert found.p < 0.001
    assert found.difference > 3


def test_cells_of_unequal_scatter_do_not_make_equal_spreads_unequal():
    random, rejected = np.random.default_rng(2), 0
    for _ in range(400):
        draw = random.normal(size=(2, 3, 8)) * np.array([3.0, 1.0, 0.5])[:, None]
        one, other = ([dict(enumerate(cell)) for cell in each] for each in draw)
        rejected += compare_spreads("", "", one, other).p < 0.05
    assert rejected <= 33  # 5 % of 400, and three standard errors


@pytest.mark.parametrize(
    ("ours", "theirs", "ratio", "p"),
    [((1, 1, 1), (2, 2, 2), 1.0, 1.0), ((1, 2, 3), (1, 1, 1), np.inf, 0.0), ((1, 2, 3), (2, 4, 6), 0.5, 0.0)],
)
def test_spreads_that_have_no_chance_in_them_get_a_p(ours, theirs, ratio, p):
    found = compare_spreads("", "", [dict(enumerate(ours))], [dict(enumerate(theirs))])
    assert found.difference == pytest.approx(ratio)
    assert found.p == pytest.approx(p, abs=1e-6)


def test_the_same_difference_in_all_seeds_has_the_p_of_a_sign_test():
    one, other = dict.fromkeys(range(8), 2.0), dict.fromkeys(range(8), 1.0)
    assert compare_values("", "", one, other).p == 2 / 2**8
    assert compare_values("", "", one, one).p == 1


def test_runs_with_other_settings_do_not_count(tmp_path, monkeypatch):
    study = tmp_path / "few" / "study.toml"
    study.parent.mkdir()
    axes = '[axes]\nmethod = [{label = "full", learning_rate = RATE}]\n'
    text = 'name = "few"\nquestion = "?"\nseeds = [0]\n[base]\ndataset = "tiny"\n' + axes
    study.write_text(text.replace("RATE", "0.5"))
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    [planned] = read_study(study).plan_runs()
    ResultsFile(study.with_name("results.jsonl")).append(
        Result(dataclasses.asdict(planned.config), "finished", 0, point=planned.point, summary={"accuracy": 0.5})
    )
    assert command.read_runs("few").keys() == {("full",)}
    study.write_text(text.replace("RATE", "0.25"))
    assert not command.read_runs("few")


@pytest.mark.parametrize(("name", "untuned"), [("few", {"linear_probe"}), ("private", None), ("language", set())])
def test_methods_share_a_grid_of_rates_on_another_seed(name, untuned):
    compared, tuned = (read_study(FOLDER / name / "study.toml", preset) for preset in (None, "tuning"))
    labels = {value.label for value in compared.axes["method"]}
    tuned_labels = {value.label for value in tuned.axes["method"]}
    assert tuned_labels == labels - (untuned if untuned is not None else {"linear_probe", "linear_probe, epsilon 8"})
    assert len(tuned.axes["learning_rate"]) == 5
    assert not set(tuned.seeds) & set(compared.seeds)
    assert len(compared.seeds) >= 5
    used = {dict(value.settings)["learning_rate"] for value in compared.axes["method"]}
    assert used <= {dict(value.settings)["learning_rate"] for value in tuned.axes["learning_rate"]}
