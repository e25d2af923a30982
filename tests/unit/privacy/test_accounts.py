"""One engine, three kinds of accounts: whose budget allows a charge, and when no round is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from fedpeft.communication.messages import Report
from fedpeft.parts.families import MECHANISMS
from fedpeft.privacy.accountant import Event, epsilon
from fedpeft.privacy.accounts import CommonAccounts, DeclaredAccounts, Limit, SumAccounts
from fedpeft.privacy.declared_terms import DeclaredTerms
from fedpeft.privacy.engine import PrivacyEngine, make_engine
from fedpeft.privacy.noise_sources import DrawnNoise, settle_declared_levels, settle_levels
from tests.refusals import refuses
from tests.unit.privacy.test_summed_book import CLIENTS, exposure

NEXT_TO_NOTHING = Event(1e6, 1e-9)
"""A release whose epsilon is below 0.01, the error of the accountant."""


def opened(engine):
    engine.open(resumed=False)
    return engine


def of_declared(folder, declared):
    """Return the engine of a server whose clients add noise of their own."""
    mechanism, exposed = MECHANISMS.build("dp_sgd(epsilon=8)"), exposure()
    noise = DrawnNoise(mechanism, settle_declared_levels(mechanism, exposed), by_clients=True)
    accounts = DeclaredAccounts(lambda: declared, lambda client: 0)
    engine = PrivacyEngine(mechanism, exposed, folder, "run", 1, accounts=accounts, noise_source=noise)
    return opened(engine)


@pytest.mark.parametrize("place", [True, False], ids=["clients", "server"])
def test_a_mechanism_that_adds_no_noise_is_refused(place, tmp_path):
    """A user's mechanism whose method has another name would leave updates as they are."""

    @dataclass(frozen=True)
    class Idle(type(MECHANISMS.build("local_dp"))):
        noises_updates: ClassVar[bool] = place
        protect_update = None

    with refuses("FP7129", f"noises_updates={place}"):
        make_engine(Idle(epsilon=8.0), exposure(), tmp_path, "run", 1)


def test_a_client_without_terms_may_not_be_charged_however_little_it_costs(tmp_path):
    declared = {0: DeclaredTerms(1.0, 0.1, 1, 1e-3, budget=0.1), 1: DeclaredTerms(1.0, 0.1, 1, 1e-3, budget=None)}
    engine = of_declared(tmp_path, declared)
    assert epsilon({NEXT_TO_NOTHING: 1}, 1e-3) < 0.01
    assert [engine.is_affordable(client, NEXT_TO_NOTHING, 1) for client in range(3)] == [True, True, False]
    assert [engine.is_affordable(client, Event(1.0, 1.0), 9) for client in range(3)] == [False, True, False]


def test_a_client_that_says_that_its_budget_is_spent_may_not_be_charged(tmp_path):
    engine = of_declared(tmp_path, {1: DeclaredTerms(1.0, 0.1, 1, 1e-3, budget=None)})
    assert engine.is_affordable(1, NEXT_TO_NOTHING, 1)
    engine.record_report(Report(1, 1, b"", error="spent", spent=True))
    assert not engine.is_affordable(1, NEXT_TO_NOTHING, 1)
    assert engine.is_over()


def test_reports_change_nothing_if_clients_keep_no_ledgers(tmp_path):
    engine = opened(make_engine(MECHANISMS.build("dp_sgd(noise_multiplier=1)"), exposure(), tmp_path, "run", 1))
    engine.record_report(Report(1, 1, b"", error="spent", spent=True, charged=9))
    assert (engine.ledger.spent, engine.sat_out, engine.finished) == ({}, set(), set())


def test_a_sum_keeps_the_common_budget_and_the_client_s_own():
    mechanism, exposed = MECHANISMS.build("distributed_dp(epsilon=8, noise_multiplier=2, rows=1200)"), exposure()
    common = CommonAccounts(mechanism, exposed, settle_levels(mechanism, exposed))
    plain = DeclaredTerms(2.0, 0.1, 1, 1e-4, budget=None)
    accounts = SumAccounts(common, 0.1, lambda: {0: plain, 1: replace(plain, budget=3.0)})
    limit = Limit(8, common.levels.delta)
    assert [accounts.limits_of(k) for k in range(3)] == [[limit], [limit, Limit(3.0, 1e-4)], None]


@pytest.mark.parametrize(("text", "kinds"), [("dp_sgd(noise_multiplier=1)", 0), ("dp_sgd(epsilon=8)", 1)])
def test_common_accounts_have_one_limit_or_none(text, kinds):
    mechanism, exposed = MECHANISMS.build(text), exposure()
    accounts = CommonAccounts(mechanism, exposed, settle_levels(mechanism, exposed))
    assert [len(accounts.limits_of(account)) for account in range(CLIENTS)] == [kinds] * CLIENTS


def test_a_charged_client_without_terms_counts_as_unprotected(tmp_path):
    declared = {client: DeclaredTerms(1.0, 1.0, 1, 1e-3, budget=None) for client in (0, 1)}
    engine = of_declared(tmp_path, declared)
    engine.ledger.spent.update({0: {Event(1.0, 1.0): 1}, 1: {Event(1.0, 1.0): 1}})
    assert engine.epsilons()[0] < 10
    del declared[1]
    assert engine.epsilons()[0] == math.inf
