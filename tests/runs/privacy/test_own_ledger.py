"""Private federations of real clients, in one process: each keeps the first book, and the server the second."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from fedpeft.communication.messages import Report
from fedpeft.deployment.options import ServeOptions
from fedpeft.privacy.accountant import Event, epsilon
from fedpeft.privacy.accounts import CommonAccounts
from fedpeft.privacy.client_protection import FAILED, OWN, Answers
from fedpeft.privacy.engine import KEY, LEDGER
from fedpeft.privacy.ledger import POPULATION, Ledger
from tests.here import ROWS
from tests.refusals import has_error, refuses


def book(made, k):
    """Return the charges in client k's own ledger."""
    return [json.loads(line) for line in (made.folder / f"edge-{k}" / LEDGER).read_text().splitlines()[1:]]


# --------------------------------------------------------------------------------------------------------- two books


@pytest.mark.parametrize("mechanism", ["dp_sgd", "local_dp"])
def test_both_books_say_what_was_planned(federation, mechanism):
    made = federation(privacy=f"{mechanism}(noise_multiplier=1.5)", batch_size=4)
    progress = made.run()
    assert progress.round == 2
    keys = set()
    for k, rows in enumerate(ROWS):
        event, releases = (Event(1.5, 4 / rows), 2) if mechanism == "dp_sgd" else (Event(1.5, 1.0), 1)
        assert [c["charges"] for c in book(made, k)] == [[[OWN, event.noise, event.rate, releases]]] * 2
        assert made.server.protection.ledger.spent[k] == {event: 2 * releases}
        home = made.folder / f"edge-{k}"
        assert {(home / name).stat().st_mode & 0o077 for name in (KEY, LEDGER, "answer")} == {0}
        keys.add((home / KEY).read_bytes())
    assert len(keys) == 2
    own = [edge.protection.compute_epsilon() for edge in made.server.edges]
    summary = made.server.protection.summary()
    assert summary["epsilon"] == pytest.approx(max(own), rel=1e-6)
    assert summary["dp_delta"] == max(edge.protection.delta for edge in made.server.edges)
    assert summary["noise_multiplier"] == 1.5
    assert (made.folder / "server" / KEY).read_bytes() not in keys


@pytest.mark.slow
def test_each_client_chooses_the_noise_that_its_own_rows_and_limit_need(federation):
    made = federation(privacy="dp_sgd(epsilon=8)", options=[{"max_epsilon": 2.0}, {}])
    made.run()
    few, many = (edge.protection for edge in made.server.edges)
    assert few.engine.noise_multiplier > many.engine.noise_multiplier
    assert 1 < few.compute_epsilon() <= 2
    assert 4 < many.compute_epsilon() <= 8
    assert few.delta == pytest.approx(1e-3)
    assert made.server.protection.summary()["noise_multiplier"] == many.engine.noise_multiplier


@pytest.mark.parametrize("mechanism", ["dp_sgd", "local_dp", "user_dp"])
def test_nothing_that_is_measured_on_the_rows_leaves_a_client(federation, mechanism):
    made = federation(privacy=f"{mechanism}(noise_multiplier=1)", rounds=1)
    made.run()
    assert {(r.rows, r.loss) for r in made.server.direct.reports} == {(1, 0.0)}
    assert {edge.create_registration().rows for edge in made.server.edges} == {1}
    if mechanism == "local_dp":
        assert {r.steps for r in made.server.direct.reports} == {0}


def test_a_spent_budget_lets_a_client_sit_out_and_the_others_go_on(federation, monkeypatch):
    privacy = "dp_sgd(noise_multiplier=0.7)"
    once = federation(privacy=privacy, rounds=1).server.edges[0].protection
    event, releases = once.compute_cost()
    limit = epsilon({event: releases}, once.delta) * 1.01
    made = federation(privacy=privacy, rounds=3, options=[{"max_epsilon": limit}, {}], serve=ServeOptions(labels=""))
    monkeypatch.setattr(made.server.observer, "say", (said := []).append)
    assert made.run().round == 3
    assert "round 2: the privacy budget of edge-0 is spent; it sits out" in said, "by name: edge-1 has the number 1"
    assert [len(book(made, k)) for k in range(2)] == [1, 3]
    assert [i.client for i in made.server.direct.asked] == [0, 1, 1, 1]
    assert made.server.protection.summary()["privacy"]["sat_out"] == [0]
    assert made.server.edges[0].protection.compute_epsilon() <= limit


def test_who_stood_in_for_another_is_not_asked_again_at_its_own_turn(federation, monkeypatch):
    """The first of the deck is away in round 1 and asked at the end; the ledger knows who came in its place."""
    made = federation(privacy="dp_sgd(epsilon=8)", clients=4, cohort=1, rounds=4)
    [first] = made.server.sampler.draw(made.server.config.seed, 1)
    everybody = made.server.wait_for_present()

    def asked():
        done = made.server.direct.asked if hasattr(made.server, "direct") else []
        return [instruction.client for instruction in done if instruction.kind == "train"]

    monkeypatch.setattr(made.server, "wait_for_present", lambda: [k for k in everybody if k != first or asked()])
    made.run()
    assert sorted(asked()) == everybody
    assert asked()[-1] == first


def test_a_client_refuses_what_the_second_book_has_missed_and_the_run_ends_in_peace(federation):
    """The client's own book has a charge more than the server's: it refuses, and the server sees to the rest."""
    made = federation(privacy="local_dp(noise_multiplier=2)", clients=1, rounds=3)
    [edge] = made.server.edges
    event, count = edge.protection.compute_cost()
    edge.protection.ledger.charge(1, "elsewhere", {OWN: (event, count)})
    mechanism = replace(edge.protection.mechanism, epsilon=epsilon({event: 2}, edge.protection.delta) * 1.01)
    edge.protection.engine.accounts = replace(edge.protection.engine.accounts, mechanism=mechanism)
    progress = made.run()
    assert progress.round == 2, "the round in which the last client refuses is the last one"
    assert [bool(r.payload) for r in made.server.direct.reports] == [True, False]
    assert "budget is spent" in made.server.direct.reports[1].error
    second = made.server.protection
    assert second.ledger.releases(0) == 3  # a charge of its own for the refusal, and what the client has said
    assert second.ledger.releases(0) >= edge.protection.ledger.releases(OWN)
    made.start([edge])
    made.server.protection.open(resumed=True)
    assert made.server.protection.sat_out == {0}, "a server that was restarted knows it, too"


def again(made):
    """Delete the folders of a federation, as if a server began another run on the same data."""
    for place in ("server", "edge-0", "edge-1"):
        shutil.rmtree(made.folder / place)


def test_a_budget_is_for_all_runs_on_the_same_rows_whatever_the_server_calls_them(federation):
    """Three rounds are what the limit allows, in one run or in three."""
    given = {"privacy": "local_dp(noise_multiplier=3)", "rounds": 2, "serve": ServeOptions(labels="")}
    own = federation(**given).server.edges[0].protection
    event, count = own.compute_cost()
    limit = epsilon({event: 3 * count}, own.delta) * 1.01
    made = federation(**given, options=[{"max_epsilon": limit}, {}])
    assert made.run().round == 2
    assert [len(book(made, k)) for k in range(2)] == [2, 2]
    again(made)
    made = federation(**given, options=[{"max_epsilon": limit}, {}])
    assert made.run().round == 2
    assert [len(book(made, k)) for k in range(2)] == [1, 2]
    [refusal] = [r for r in made.server.direct.reports if r.error]
    assert (refusal.client, refusal.round, refusal.spent, refusal.payload) == (0, 2, True, b"")
    own = made.server.edges[0].protection
    assert own.lifetime.spent(own.delta) == pytest.approx(epsilon({event: 3 * count}, own.delta))
    assert made.edge(0), "a client whose budget is spent may come back to the run it has taken part in"
    again(made)
    with refuses("FP7048", "0.jsonl"):
        federation(**given, options=[{"max_epsilon": limit}, {}])


def test_a_lost_book_of_all_runs_is_made_again_from_the_run_s_own(federation):
    made = federation(privacy="dp_sgd(noise_multiplier=1)", clients=1)
    made.run()
    own = made.server.edges[0].protection
    before = own.lifetime.spent(own.delta)
    assert before == pytest.approx(own.compute_epsilon())
    own.lifetime.path.unlink()
    own = made.edge(0).protection
    assert own.lifetime.spent(own.delta) == before
    own = made.edge(0).protection
    assert own.lifetime.spent(own.delta) == before, "carried over once"


# ------------------------------------------------------------------------------------------------------------- replays


def asked_once(made, k=0):
    """Return the first instruction to client k of a run."""
    made.run()
    return next(i for i in made.server.direct.asked if i.client == k and i.round == 2)


def test_noise_of_a_known_seed_counts_as_none_for_later_runs(federation):
    made = federation(privacy="dp_sgd(noise_multiplier=1, test_noise=True)", rounds=1)
    made.run()
    edge = made.server.edges[0]
    assert edge.protection.lifetime.spent(1e-5) == float("inf")
    assert edge.protection.compute_epsilon() < float("inf"), "its own book says what the run would have cost"
    edge.protection.lifetime.path.unlink()
    again = made.edge(0).protection.lifetime
    assert again.spent(1e-5) == float("inf"), "nor does it count where the book of all runs was lost, and is made anew"


def test_what_was_answered_is_answered_again_and_anything_else_has_new_noise(federation):
    made = federation(privacy="local_dp(noise_multiplier=1)")
    instruction = asked_once(made)
    edge = made.server.edges[0]
    given = edge.handle(instruction)
    assert given.payload
    assert len(book(made, 0)) == 2
    assert edge.handle(replace(instruction, attempt=7)) == given, "the server's count of attempts is not relied on"
    assert made.edge(0).handle(instruction) == given, "a restarted client remembers"
    almost = replace(instruction, learning_rate=instruction.learning_rate * (1 + 1e-12))
    other = edge.handle(almost)
    assert other.charged == given.charged + 1
    again = edge.handle(instruction)  # its answer is not the last one any more
    assert again.charged == given.charged + 2
    assert len({r.payload for r in (given, other, again)}) == 3
    assert [c["attempt"] for c in book(made, 0)] == [0, 0, 1, 2]


class KillError(BaseException):
    """Nothing catches it: the client is gone."""


@pytest.mark.parametrize("step", ["charged for all runs", "charged", "trained", "answer kept"])
def test_a_client_killed_between_any_two_steps_is_charged_at_least_what_it_released(federation, monkeypatch, step):
    made = federation(privacy="dp_sgd(noise_multiplier=1)")
    instruction = replace(asked_once(made), learning_rate=1e-3)
    before = len(book(made, 0))
    with monkeypatch.context() as patch:
        where, name = (Ledger, "charge") if step.startswith("charged") else (Answers, "keep")
        original = getattr(where, name)

        def kill(self, *arguments):
            found = original(self, *arguments) if step != "trained" else None
            if step == "charged" and self.path.name != LEDGER:
                return found
            raise KillError

        edge = made.edge(0)
        patch.setattr(where, name, kill)
        with pytest.raises(KillError):
            edge.handle(instruction)
    assert len(book(made, 0)) == before + (step != "charged for all runs")
    answer = made.edge(0).handle(instruction)
    assert answer.payload
    assert len(book(made, 0)) == before + 1, "nothing was released under the first charge, or the same bits"
    assert made.edge(0).handle(instruction) == answer
    own = made.edge(0).protection
    assert own.lifetime.spent(own.delta) == own.compute_epsilon(), "and not twice for all runs"


def test_other_rows_or_another_setting_are_another_input(federation):
    made = federation(privacy="local_dp(noise_multiplier=1)")
    instruction = asked_once(made)
    given = made.server.edges[0].handle(instruction)
    file = made.folder / "0.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    other = made.edge(0).handle(instruction)
    assert (other.charged, other.payload != given.payload) == (given.charged + 1, True)


def test_a_client_that_has_lost_its_ledger_takes_no_part(federation):
    made = federation(privacy="dp_sgd(noise_multiplier=1)", rounds=1)
    made.run()
    (made.folder / "edge-0" / LEDGER).unlink()
    with refuses("FP7039"):
        made.edge(0)


# ------------------------------------------------------------------------------------- what a client does not trust in


def test_a_client_refuses_what_its_mechanism_does_not_cover(federation):
    made = federation(privacy="dp_sgd(noise_multiplier=1)")
    instruction = asked_once(made)
    edge = made.server.edges[0]
    before = (made.folder / "edge-0" / LEDGER).read_bytes()
    for changed, says in (
        ({"kind": "prepare", "round": 0}, ("FP7034", "sums over its examples")),
        ({"kind": "evaluate"}, ("FP7034", "losses on its examples")),
        ({"kind": "trian"}, ("FP7034", "something called 'trian")),
        ({"kind": "trian", "attempt": 7, "learning_rate": 1e-3}, ("FP7034", "something called 'trian")),
        ({"round": 0}, ("FP7033",)),
        ({"correction": b"x"}, ("FP7033",)),
    ):
        report = edge.handle(replace(instruction, **changed))
        assert has_error(report.error, *says)
        assert not report.payload
    assert (made.folder / "edge-0" / LEDGER).read_bytes() == before


@pytest.mark.parametrize("privacy", ["dp_sgd(noise_multiplier=1)", "dp_sgd(noise_multiplier=1, raw_metrics=True)"])
def test_the_server_s_attempt_reaches_no_work(federation, monkeypatch, privacy):
    """It would choose the noise: two inputs under one attempt give the difference of what is hidden."""
    made = federation(privacy=privacy)
    instruction = asked_once(made)
    edge = made.server.edges[0]
    seen = []

    def work(given):
        seen.append((given.kind, given.attempt))
        return Report(given.client, given.round, b"x")

    monkeypatch.setattr(edge.workers, "answer", work)
    for kind in ("train", "evaluate", "prepare", "trian"):
        edge.handle(replace(instruction, kind=kind, learning_rate=1e-3, attempt=7))
    trained = len(book(made, 0)) - 1
    assert [c["attempt"] for c in book(made, 0)][trained] == 1
    assert seen == [("train", 1)] + ([("evaluate", 0)] if "raw_metrics" in privacy else [])


def test_the_steps_that_are_asked_for_are_charged(federation):
    made = federation(privacy="dp_sgd(noise_multiplier=1)")
    instruction = asked_once(made)
    report = made.server.edges[0].handle(replace(instruction, steps=5))
    assert report.steps == 5
    assert book(made, 0)[-1]["charges"] == [[OWN, 1.0, 4 / ROWS[0], 5]]


def test_a_library_s_message_stays_at_home(federation, monkeypatch):
    made = federation(privacy="dp_sgd(noise_multiplier=1)")
    instruction = replace(asked_once(made), learning_rate=1e-3)
    edge = made.server.edges[0]

    def fail(*_):
        raise RuntimeError("a tensor of 17 rows does not fit")

    monkeypatch.setattr(edge.workers, "answer", fail)
    assert edge.handle(instruction).error == FAILED


# ------------------------------------------------------------------------------------------------------------- user_dp


def test_user_level_privacy_draws_secret_cohorts_among_the_places(federation):
    made = federation(privacy="user_dp(noise_multiplier=1, test_noise=True)", cohort=1, rounds=6, seed=1)
    progress = made.run()
    assert progress.round == 6
    ledger = made.server.protection.ledger
    assert isinstance(made.server.protection.accounts, CommonAccounts)
    assert ledger.spent == {POPULATION: {Event(1.0, 0.5): 6}}
    rounds = [json.loads(line) for line in (made.folder / "server" / "rounds.jsonl").read_text().splitlines()]
    assert {r["clients"] for r in rounds} == {1}, "the expected number is told, whatever it was"
    asked = [instruction.round for instruction in made.server.direct.asked]
    assert {asked.count(round_number) for round_number in range(1, 7)} > {1}, (
        "another seed is needed: all cohorts were of one client"
    )
    assert all(r["update_norm"] > 0 and not r["rejected"] for r in rounds)
    assert not (made.folder / "edge-0" / LEDGER).exists()


def test_the_second_book_takes_over_what_clients_say(federation):
    made = federation(privacy="local_dp(noise_multiplier=1)", rounds=1)
    made.run()
    second = made.server.protection
    for charged, releases in ((1, 1), (4, 4), (2, 4), (4, 4)):
        second.record_report(Report(0, 1, b"x", charged=charged))
        assert second.ledger.releases(0) == releases
    assert second.ledger.releases(1) == 1
