"""Private starts: what they cost beside the rounds, in whole runs and on real clients."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from fedpeft.aggregation.heads.private_centroids import PrivateCentroids
from fedpeft.privacy.accountant import Event, epsilon, noise_for
from fedpeft.privacy.client_protection import OWN
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.ledger import POPULATION
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.rounds import preparation
from fedpeft.simulate import simulate
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error, refuses
from tests.unit.privacy.test_private_start import QUIET, TINY, own_book


def trained(folder, **given):
    simulation = Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(QUIET))
    folder.mkdir(parents=True, exist_ok=True)
    return simulation, simulation.train(simulation.server(Records(folder)))


def book(folder):
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(("mechanism", "budget"), [("dp_sgd", 8.0), ("local_dp", 300.0), ("user_dp", 8.0)])
def test_a_run_is_charged_for_its_start_before_anyone_is_asked_and_stays_within_its_budget(
    mechanism, budget, tmp_path, monkeypatch
):
    seen = []
    original = Simulation.server

    def watched(self, records):
        server = original(self, records)
        inner = server.transport.send_in_order

        def in_order(instructions, count, phase, *early):
            if phase == "prepare":
                seen.append(book(self.folder)[1])
            return inner(instructions, count, phase, *early)

        server.transport.send_in_order = in_order
        return server

    monkeypatch.setattr(Simulation, "server", watched)
    simulation, progress = trained(tmp_path, privacy=f"{mechanism}(epsilon={budget}, start=0.5)")
    own = simulation.protection
    assert simulation.config.head == "private_centroids"
    assert progress.round == 2
    [first] = seen
    accounts = [POPULATION] if mechanism == "user_dp" else list(range(6))
    assert first["round"] == 0
    assert first["charges"] == [[account, own.start, 1.0, 1] for account in accounts]
    whole = noise_for(budget, own.delta, 1.0, 1)
    assert own.start == pytest.approx(whole * math.sqrt(2))
    assert book(tmp_path)[0]["start_noise_multiplier"] == own.start
    worst, _ = own.epsilons()
    assert 0.9 * budget < worst <= budget
    assert worst == max(epsilon(events, own.delta) for events in own.ledger.spent.values())
    simulation.close()


def test_all_of_the_budget_may_be_the_start_s_and_no_round_follows(tmp_path):
    simulation, progress = trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    assert progress.round == 0
    assert len(book(tmp_path)) == 2
    assert 2.9 < simulation.protection.epsilons()[0] <= 3
    simulation.close()


def test_a_start_repeated_after_a_kill_is_the_same_and_charged_once(tmp_path, monkeypatch):
    class KillError(BaseException):
        pass

    with monkeypatch.context() as patch:
        patch.setattr("fedpeft.rounds.rounds.Server.commit", lambda *_: (_ for _ in ()).throw(KillError))
        with pytest.raises(KillError):
            trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    before = book(tmp_path)
    _, progress = trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    assert book(tmp_path) == before
    (tmp_path / "checkpoint").rename(tmp_path / "gone")
    _, again = trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    assert all(torch.equal(progress.adapter[n], again.adapter[n]) for n in again.adapter)
    (tmp_path / "checkpoint").rename(tmp_path / "gone too")
    with refuses("FP7040", "client 0"):
        trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)", learning_rate=1e-3)


def test_nothing_but_the_release_leaves_a_client(tmp_path, monkeypatch):
    """Numbers of rows neither, and the statistics differ from the sums by the noise that is told."""
    made, sent, norm_of = [], [], torch.linalg.norm
    statistics, check = PrivateCentroids.statistics, preparation.check_statistics

    def noted(self, *given):
        made.append(statistics(self, *given))
        return made[-1]

    def heard(found, *given):
        sent.append(found)
        check(found, *given)

    monkeypatch.setattr(PrivateCentroids, "statistics", noted)
    monkeypatch.setattr(preparation, "check_statistics", heard)
    simulation, progress = trained(tmp_path, privacy="dp_sgd(epsilon=8, start=1)")
    assert set(progress.rows.values()) == {1}
    assert len(made) == len(sent) == simulation.config.clients
    noises = []
    for found in sent:  # the largest clients are worked on first: whose sums they are is told by their size
        distances = [found["sums"].double() - own["sums"] for own in made]
        noises.append(min(distances, key=norm_of).flatten())
    noise = torch.cat(noises)
    assert float(noise.std()) == pytest.approx(simulation.protection.start, rel=5 / (2 * len(noise)) ** 0.5)
    simulation.close()


def test_bounded_heads_need_no_privacy(tmp_path):
    simulation, progress = trained(tmp_path, head="private_ridge", rounds=1)
    assert progress.round == 1
    simulation.close()


@pytest.mark.parametrize("mechanism", ["dp_sgd", "user_dp"])
def test_noise_without_a_budget_costs_the_share_that_is_asked_for(mechanism, tmp_path):
    simulation, _ = trained(tmp_path, privacy=f"{mechanism}(noise_multiplier=1.0, start=0.5)", head="private_ridge")
    own = simulation.protection
    rounds = max(epsilon({Event(1.0, rate): n}, own.delta) for rate, n in own.mechanism.plan_releases(own.exposure))
    alone = epsilon({Event(own.start, 1.0): 1}, own.delta)
    assert alone == pytest.approx(rounds, rel=0.02)
    assert rounds < own.epsilons()[0] < 2 * rounds
    simulation.close()


def test_the_summary_has_the_private_probe_and_the_start(tmp_path):
    summary = simulate(RunConfig(**TINY, privacy="dp_sgd(epsilon=40)"), tmp_path / "run", False, QUIET).to_dict()
    assert 0.25 < summary["private_probe_accuracy"] <= 1
    assert summary["accuracy"] == pytest.approx(summary["private_probe_accuracy"], abs=0.15)
    assert summary["rounds"] == 0
    assert summary["privacy"]["start_share"] == 1
    assert summary["privacy"]["start_noise_multiplier"] == summary["noise_multiplier"]


@pytest.mark.parametrize("mechanism", [pytest.param("dp_sgd", marks=pytest.mark.slow), "local_dp"])
def test_real_clients_release_once_under_their_own_books(federation, mechanism):
    made = federation(head="auto", privacy=f"{mechanism}(epsilon=8, start=0.5)")
    made.server.wait_for_present()
    assert made.run().round == 2
    second = made.server.protection
    for k, edge in enumerate(made.server.edges):
        own = edge.protection
        first, *rest = own_book(made, k)
        assert (first["round"], first["charges"]) == (0, [[OWN, own.engine.start, 1.0, 1]])
        assert [line["round"] for line in rest] == [1, 2]
        assert second.ledger.spent[k] == own.ledger.spent[OWN], "the server's book says the same"
        assert own.compute_epsilon() <= 8
    [line] = [entry for entry in book(made.folder / "server")[1:] if entry["round"] == 0]
    assert {charge[0] for charge in line["charges"]} == {0, 1}
    asked = [i for i in made.server.direct.asked if i.kind == "prepare"]
    sent = [r for r in made.server.direct.reports if r.round == 0]
    assert {r.rows for r in sent} == {1}
    edge, before = made.server.edges[0], own_book(made, 0)
    assert has_error(edge.handle(asked[0]).error, "FP7035"), "its answer is not the last one any more"
    assert has_error(edge.handle(replace(asked[0], base_precision="fp32")).error, "FP7035")
    assert own_book(made, 0) == before


def test_a_client_whose_start_has_all_trains_not(federation):
    made = federation(head="auto", privacy="dp_sgd(epsilon=8, start=1)", rounds=3)
    made.server.wait_for_present()
    assert made.run().round == 0
    assert [len(own_book(made, k)) for k in range(2)] == [1, 1]
