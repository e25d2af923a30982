"""The server's book of real clients that share the noise of sums: who is drawn, charged, left out and heard."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedpeft.communication.messages import Report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.parts.families import MECHANISMS, PEFT_METHODS, strategies
from fedpeft.peft.adapter import Layout
from fedpeft.privacy.accountant import epsilon
from fedpeft.privacy.accounts import CommonAccounts, SumAccounts
from fedpeft.privacy.declared_terms import DeclaredTerms
from fedpeft.privacy.engine import LEDGER, PrivacyEngine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.noise_sources import NoiseShares, settle_levels
from fedpeft.rounds.private_rounds import PrivacyHook
from tests.refusals import refuses

CLIENTS = 12


def exposure(cohort=CLIENTS, start=False):
    ones = np.ones(CLIENTS, np.int64)
    return Exposure(
        strategy=strategies.build("fedit"), method=PEFT_METHODS.build("lora"), layout=Layout(()), rows=ones, steps=ones,
        participations=ones, batch_size=10, rounds=5, cohort=cohort, even=True, start=start, start_entries=40,
        trained=(50, 50),
    )  # fmt: skip


def opened(folder, cohort=CLIENTS, start=False, under_way=lambda _: [], **terms):
    """Return the engine of clients that all have registered, client k with the terms given as `c3={...}`."""
    mechanism, exposed = MECHANISMS.build("distributed_dp(noise_multiplier=2, rows=1200)"), exposure(cohort, start)
    levels, declared = settle_levels(mechanism, exposed), {}
    accounts = SumAccounts(CommonAccounts(mechanism, exposed, levels), mechanism.rate(exposed), lambda: declared)
    shares = NoiseShares(mechanism, exposed, levels, under_way)
    made = PrivacyEngine(mechanism, exposed, folder, "run", 1, accounts=accounts, noise_source=shares)
    plain = DeclaredTerms(2.0, mechanism.rate(exposed), 1, made.delta, None, made.start)
    declared |= {k: replace(plain, **terms.get(f"c{k}", {})) for k in range(CLIENTS)}
    made.open(resumed=False)
    return made


def epsilon_of_models(book):
    return book.noise_source.epsilon_of_models(book)


def charged(folder):
    lines = [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()[1:]]
    return [(line["round"], [charge[0] for charge in line["charges"]]) for line in lines]


def test_who_is_there_is_drawn_by_secret_coins_and_charged(tmp_path):
    book = opened(tmp_path, cohort=6)
    there, drawn = [0, 2, 3, 5, 7, 8, 11], set()
    for round_number in range(1, 40):
        entry = book.enter(round_number, "state", there)
        assert set(entry.cohort) <= set(there)
        assert charged(tmp_path)[-1] == (round_number, entry.cohort)
        drawn.add(tuple(entry.cohort))
    assert len(drawn) > 10


def test_who_are_too_few_for_a_sum_are_not_asked_and_not_charged(tmp_path):
    book = opened(tmp_path)
    assert book.enter(1, "state", [3, 7]).cohort == []
    assert charged(tmp_path) == [(1, [])]
    assert epsilon_of_models(book) > 0, "against models each round counts"


def test_a_sum_that_is_under_way_is_gone_on_with_at_no_other_charge(tmp_path):
    going: dict[int, list[int]] = {}
    book = opened(tmp_path, cohort=10, under_way=lambda round_number: going.get(round_number, []))
    first = book.enter(1, "state", range(CLIENTS))
    going[1] = first.cohort
    assert book.enter(1, "state", [0, 1]) == replace(first, spent=())
    assert len(charged(tmp_path)) == 1
    going.clear()
    again = book.enter(1, "state", range(CLIENTS))
    assert (again.attempt, len(charged(tmp_path))) == (1, 2)


def test_what_clients_tell_of_their_ledgers_is_no_attempt(tmp_path):
    """A restarted server asks for a sum as it did before: clients answer the very same again, and nothing else."""
    going: dict[int, list[int]] = {}
    book = opened(tmp_path, cohort=10, under_way=lambda round_number: going.get(round_number, []))
    first = book.enter(1, "state", range(CLIENTS))
    for client in first.cohort[:2]:
        book.record_report(Report(client, 1, b"", charged=3))
    going[1] = first.cohort
    assert book.enter(1, "state", range(CLIENTS)) == replace(first, spent=())
    again = opened(tmp_path / "start", start=True, under_way=lambda round_number: going.get(round_number, []))
    begun = again.enter_start("state")
    again.record_report(Report(0, 0, b"", charged=2))
    going[0] = begun.cohort
    assert again.enter_start("state").attempt == begun.attempt


def test_a_start_is_charged_once_to_those_who_have_registered(tmp_path):
    going: dict[int, list[int]] = {}
    book = opened(tmp_path, start=True, under_way=lambda round_number: going.get(round_number, []))
    del book.accounts.declared()[4]
    entry = book.enter_start("state")
    assert entry.cohort == [k for k in range(CLIENTS) if k != 4]
    assert charged(tmp_path) == [(0, entry.cohort)]
    going[0] = entry.cohort
    assert book.enter_start("state").cohort == entry.cohort
    assert len(charged(tmp_path)) == 1


def test_whose_own_budget_is_spent_is_left_out_until_there_are_too_few_for_a_sum(tmp_path):
    plain = opened(tmp_path / "plain")
    event, _ = plain.accounts.cost_of_round([0])[0]
    twice = epsilon({event: 2}, plain.delta)
    limits = {f"c{k}": {"budget": twice * 1.001} for k in range(CLIENTS - 2)}
    once = epsilon({event: 1}, plain.delta / 10)
    assert once > twice, "at its own delta, a client's budget is for less than at the server's"
    book = opened(tmp_path / "book", **limits | {"c0": {"budget": once * 1.001, "delta": plain.delta / 10}})
    everybody = list(range(CLIENTS))
    assert book.enter(1, "state", everybody).cohort == everybody
    assert book.enter(2, "state", everybody).spent == (0,)
    assert book.enter(3, "state", everybody) is None, "two are left"
    assert book.sat_out == {0}


def test_who_sat_out_is_not_told_where_coins_draw(tmp_path):
    """Who has spent its budget was drawn most often, and summary.json is for everybody."""
    book = opened(tmp_path / "some", cohort=6)
    book.enter(1, "state", list(range(CLIENTS)))
    book.record_report(Report(3, 1, b"", error="spent", spent=True, charged=4))
    assert book.sat_out == {3}
    assert book.summary()["privacy"]["sat_out"] is None


@pytest.mark.parametrize(("cohort", "who"), [(6, "a randomly drawn client"), (CLIENTS, "place 0")])
def test_nor_does_the_screen_name_who_sits_out_there(cohort, who, tmp_path):
    plain = opened(tmp_path / "plain", cohort=cohort)
    once = epsilon({plain.accounts.cost_of_round([0])[0][0]: 1}, plain.delta)
    book, said = opened(tmp_path / "book", cohort=cohort, c0={"budget": once * 1.001}), []
    hook = PrivacyHook(None, book, SimpleNamespace(called="place {}".format, answered=None), said.append)
    for number in range(1, 13):
        hook.select(RoundPlan(number, list(range(CLIENTS)), digest=lambda: "state"), SimpleNamespace(round=number - 1))
    assert {line.partition(": ")[2] for line in said} == {f"the privacy budget of {who} is spent; it sits out"}


def test_a_client_that_says_that_its_budget_is_spent_is_not_asked_again(tmp_path):
    book = opened(tmp_path)
    everybody = list(range(CLIENTS))
    book.enter(1, "state", everybody)
    models = epsilon_of_models(book)
    book.record_report(Report(3, 1, b"", error="spent", spent=True, charged=4))
    book.record_report(Report(5, 1, b"", charged=1))
    book.record_report(Report(77, 1, b"", charged=9))
    assert [book.ledger.releases(k) for k in (3, 5, 7)] == [4, 1, 1]
    assert epsilon_of_models(book) == models, "what one client says is no sum that all have seen"
    assert 3 not in book.enter(2, "state", everybody).cohort
    assert book.summary()["privacy"]["sat_out"] == [3]
    again = opened(tmp_path)
    assert again.summary()["privacy"]["sat_out"] == [3]
    assert again.ledger.spent == book.ledger.spent
    assert 3 in again.enter(3, "state", everybody).cohort, "it may have come back with a larger budget"


def test_a_client_whose_ledger_says_no_more_than_the_server_s_has_sat_out_after_a_restart_too(tmp_path):
    book = opened(tmp_path)
    book.enter(1, "state", list(range(CLIENTS)))
    sums, models = len(charged(tmp_path)), epsilon_of_models(book)
    for _ in range(3):
        book.record_report(Report(3, 2, b"", error="spent", spent=True, charged=1))
    assert len(charged(tmp_path)) == sums + 1
    again = opened(tmp_path)
    assert again.sat_out == {3}
    assert again.ledger.releases(3) == 1
    assert epsilon_of_models(again) == models


def test_whose_own_budget_pays_for_fewer_rounds_than_are_planned_is_told_before_the_first(tmp_path):
    plain = opened(tmp_path / "plain", start=True)
    assert plain.accounts.describe_shortfall() == ""
    event, before = plain.accounts.cost_of_round([0])[0][0], dict([plain.accounts.cost_of_start()[0]])
    [(_, planned)] = plain.mechanism.plan_releases(plain.exposure)
    paid = {n: epsilon(before | {event: n}, plain.delta) * 1.0001 for n in (0, 2, planned - 1, planned)}
    limits = {f"c{k}": {"budget": paid[n]} for k, n in enumerate((2, planned - 1, planned))}
    said = opened(tmp_path / "book", start=True, **limits).accounts.describe_shortfall()
    assert f"budgets of 2 of {CLIENTS} clients pay for 2 to {planned - 1} rounds, and {planned} are planned" in said
    none = opened(tmp_path / "none", start=True, c3={"budget": paid[0]}).accounts.describe_shortfall()
    assert f"budgets of 1 of {CLIENTS} clients pay for 0 rounds" in none


@pytest.mark.parametrize("wrong", [{"noise": 1.999}, {"rate": 0.5}, {"start": 2.0}], ids=str)
def test_noise_that_would_not_be_in_the_same_sum_is_refused(tmp_path, wrong):
    book = opened(tmp_path)
    good = book.accounts.declared()[0]
    book.accounts.check_terms(replace(good, budget=1.0, delta=1e-9))
    with refuses("FP5162"):
        book.accounts.check_terms(replace(good, **wrong))
