"""Energy as a budget and as a price: what is too expensive never trains, and a price decides between trials."""

from __future__ import annotations

import csv
import io

import pytest

from fedpeft.tune import store
from fedpeft.tune.report import Report
from fedpeft.tune.sampling import NEVER_TRAINED
from fedpeft.tune.search_file import Budget, Price
from fedpeft.tune.sizes import Size, Sizes, check_smallest
from tests.refusals import refuses
from tests.tune.made import BASE, HEAD, InProcess, conducted, search_of

WATTS = BASE + 'measure = "validation(every=1) + energy(watts=6{more})"\n'
STEPS = 'local_work = "steps({steps})"\n[search]\nsteps = [2, 4, 8]\n'


def searched(keys, more=""):
    return keys + WATTS.replace("{more}", more) + STEPS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("budget = {joules = 5}\n" + BASE + STEPS, ("FP1831", "joules")),
        ("price = {grams = 5}\n" + BASE + STEPS, ("FP1831", "grams")),
        (searched("budget = {joules = 0}\n"), ("FP1832", "joules", "0")),
        (searched("budget = {joules = true}\n"), ("FP1832", "joules", "True")),
        (searched("budget = {watts = 1}\n"), ("FP1469", "watts")),
        (searched("budget = {}\n"), ("FP1469",)),
        (searched("price = {}\n"), ("FP1833",)),
        (searched("price = 3\n"), ("FP1833",)),
        (searched("price = {joules = -1}\n"), ("FP1834", "joules", "-1")),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, words):
    with refuses(*words):
        search_of(tmp_path, text)


def test_a_budget_of_one_unit_keeps_the_identity_of_earlier_searches():
    assert Budget({"bytes": 800}).identity == {"unit": "bytes", "most": 800}


def test_a_size_must_be_within_all_units_of_a_budget():
    budget = Budget({"parameters": 100, "joules": 50.0})
    assert Size(100, 1, 50.0).is_within(budget)
    assert not Size(101, 1, 50.0).is_within(budget)
    assert not Size(100, 1, 50.5).is_within(budget)
    assert Price({"parameters": 2.0, "joules": 0.5}).compute({"parameters": 3, "joules": 8.0, "bytes": 9}) == 10.0


def test_energy_is_predicted_from_the_declared_numbers(tmp_path):
    search = search_of(tmp_path, searched("", ", step_seconds=0.5, pue=1.5, intensity=360"))
    size = Sizes(tmp_path).of(search.build_corner({"steps": 8}))
    assert size.joules == pytest.approx(4 * 3 * 8 * 0.5 * 6 * 1.5)  # rounds, cohort, steps, seconds, watts, site
    assert size.grams == pytest.approx(size.joules / 3.6e6 * 360)


def test_grams_without_an_intensity_are_refused_before_a_trial(tmp_path):
    with refuses("FP1835"):
        check_smallest(search_of(tmp_path, searched("budget = {grams = 1}\n")), Sizes(tmp_path), 0)


class Steps:
    """Sizes that take no time: 100 joules and 1,000 parameters for each step."""

    def of(self, config):
        steps = int(config.local_work[len("steps(") : -1])
        return Size(1000 * steps, 4000 * steps, 100.0 * steps)


ALL = HEAD.format(pruner="halving").replace("trials = 12", "trials = 3") + 'sampler = "random"\n'


def test_what_uses_too_many_joules_is_never_trained(tmp_path):
    search = search_of(tmp_path, searched(ALL + "budget = {parameters = 5000, joules = 300}\n"))
    starts = InProcess()
    place = conducted(search, tmp_path / "out", starts, sizes=Steps())
    trials = place.study.get_trials()
    never = {t.number: t.user_attrs[NEVER_TRAINED] for t in trials if NEVER_TRAINED in t.user_attrs}
    assert never
    assert all("FP1465" in why and "5,000 parameters and 300 joules" in why for why in never.values())
    assert not set(starts.done) & set(never)
    assert {t.params["steps"] for t in trials if t.number not in never} == {2}


@pytest.mark.parametrize(("objective", "sign"), [("loss", 1), ("accuracy", -1)])
def test_a_price_joins_the_values_that_trials_are_compared_by(tmp_path, objective, sign):
    keys = ALL.replace("trials = 3", "trials = 6") + f'objective = "{objective}"\nprice = {{joules = 1e-3}}\n'
    place = conducted(search_of(tmp_path, searched(keys)), tmp_path / "out", InProcess(), sizes=Steps())
    finished = store.list_finished(place.study)
    for trial in place.study.get_trials():
        assert store.get_cost(trial) == pytest.approx(sign * 0.1 * trial.params["steps"])
    plain = {round(t.value - store.get_cost(t), 9) for t in finished}
    assert plain == {round(t.user_attrs[f"validation_{objective}"], 9) for t in finished}
    assert len(plain) == 1  # made-up runs differ by rate and rank alone, so the price decides
    assert finished[0].params["steps"] == min(t.params["steps"] for t in finished)
    report = Report(place.search, place.study)
    assert "1e-03" in report.unpriced or "0.001" in report.unpriced
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert float(rows[0]["predicted_joules"]) == 100 * int(rows[0]["steps"])
    headings = report.build_table().headings
    assert headings[2:4] == (f"priced {objective}", "loss")


def test_a_run_that_used_more_than_was_predicted_is_no_result(tmp_path):
    search = search_of(tmp_path, searched(ALL + "budget = {joules = 300}\n"))
    place = conducted(search, tmp_path / "out", InProcess(), trials=1, sizes=Steps())
    [trial] = [t for t in place.study.get_trials() if NEVER_TRAINED not in t.user_attrs]
    run = place.run_of(trial.number)
    (run / "clients.jsonl").write_text('{"round": 1, "client": 0, "joules": {"train": 301.0}}\n', encoding="utf-8")
    with refuses("FP5555", run, "301", "300"):
        place.read_value(trial.number)
    (run / "clients.jsonl").write_text('{"round": 1, "client": 0, "joules": {"train": 299.0}}\n', encoding="utf-8")
    assert place.read_value(trial.number)[1]["joules"] == 299.0
