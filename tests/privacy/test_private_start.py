"""Private starts: what they cost beside the rounds, in whole runs and on real clients."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import norm as normal

from fedpeft.aggregation.heads.private_centroids import PrivateCentroids
from fedpeft.config import RunConfig
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.privacy.accountant import Event, epsilon, noise_for, together, within
from fedpeft.privacy.client_engine import OWN
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.ledger import POPULATION
from fedpeft.run.console import ConsoleObserver
from fedpeft.run.records import Records
from fedpeft.server import preparation
from fedpeft.simulate import simulate
from fedpeft.simulation.private_probe import private_probe
from fedpeft.simulation.simulation import Simulation

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 3, "rounds": 2, "workers": 1, "seed": 3,
        "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "dtype": "fp32",
        "learning_rate": 3e-3, "optimizer": "adamw(warmup=8, head_rate=1.0)",
        "measure": "validation(every=100)"}  # fmt: skip
QUIET = Console(quiet=True)


def trained(folder, **given):
    simulation = Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(QUIET))
    folder.mkdir(parents=True, exist_ok=True)
    return simulation, simulation.train(simulation.server(Records(folder)))


def book(folder):
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()]


GRID, WIDEST = 1e-3, 60.0
"""Of privacy losses: distance of the points, and the largest that is kept."""


def losses(event, joined):
    """Probabilities of privacy losses on the grid, each rounded up; `joined`: seen from the data with the unit.

    With w(x) = 1 - q + q exp((2 x - 1) / (2 z^2)), the loss of an outcome x is log w(x) where the unit is in, whose
    outcomes are those of (1 - q) N(0, z^2) + q N(1, z^2), and -log w(x) where it is not.
    """
    z, q = event.noise, event.rate
    x = np.linspace(-12 * z, 1 + 12 * z, 400_001)
    out, with_it = np.diff(normal.cdf(x / z)), np.diff(normal.cdf((x - 1) / z))
    loss = np.logaddexp(np.log1p(-q) if q < 1 else -np.inf, np.log(q) + (2 * x - 1) / (2 * z * z))
    chance, worst = ((1 - q) * out + q * with_it, loss[1:]) if joined else (out, -loss[:-1])
    bins = np.clip(np.ceil((worst + WIDEST) / GRID), 0, 2 * WIDEST / GRID - 1).astype(int)
    return np.bincount(bins, chance, minlength=int(2 * WIDEST / GRID))


def independent(events, delta):
    """Epsilon by convolving the privacy loss distributions of all releases: another way than the package's."""
    found = 0.0
    for joined in (True, False):
        size = int(2 * WIDEST / GRID)
        spectrum = np.ones(size // 2 + 1, dtype=complex)
        for event, count in events.items():
            spectrum = spectrum * np.fft.rfft(np.roll(losses(event, joined), -size // 2)) ** count
        chance = np.roll(np.fft.irfft(spectrum, size), size // 2).clip(min=0)
        loss = np.arange(size) * GRID - WIDEST
        low, high = 0.0, WIDEST
        while high - low > 1e-4:
            middle = (low + high) / 2
            above = loss > middle
            if (chance[above] * -np.expm1(middle - loss[above])).sum() > delta:
                low = middle
            else:
                high = middle
        found = max(found, high)
    return found


@pytest.mark.parametrize("budget", [2.0, *(pytest.param(budget, marks=pytest.mark.slow) for budget in (0.5, 8.0))])
@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.1, 0.9))])
@pytest.mark.parametrize(("rate", "steps"), [(0.1, 40), (1.0, 3)])
def test_start_and_rounds_together_spend_the_budget_and_no_more(budget, share, rate, steps):
    delta = 1e-4
    start = Event(noise_for(budget, delta, 1.0, 1) / math.sqrt(share), 1.0)
    rounds = Event(noise_for(budget, delta, rate, steps, {start: 1}), rate)
    total = together({start: 1}, {rounds: steps})
    assert within(total, delta, budget)
    assert 0.97 * budget - 0.02 < independent(total, delta) <= budget + GRID * (1 + steps)
    assert not within(together({start: 1}, {Event(0.985 * rounds.noise, rate): steps}), delta, budget)
    assert noise_for(budget, delta, rate, steps, {start: 1}) > noise_for(budget, delta, rate, steps)


def test_one_release_costs_what_the_closed_form_says():
    noise, delta = noise_for(2.0, 1e-4, 1.0, 1), 1e-4
    a, b = 1 / (2 * noise), 2.0 * noise
    assert normal.cdf(a - b) - math.exp(2.0) * normal.cdf(-a - b) == pytest.approx(delta, rel=0.2)


def test_equal_releases_are_added_up():
    event = Event(1.0, 1.0)
    assert together({event: 1}, {event: 2, Event(2.0, 1.0): 1}) == {event: 3, Event(2.0, 1.0): 1}


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(("mechanism", "budget"), [("dp_sgd", 8.0), ("local_dp", 300.0), ("user_dp", 8.0)])
def test_a_run_is_charged_for_its_start_before_anyone_is_asked_and_stays_within_its_budget(
    mechanism, budget, tmp_path, monkeypatch
):
    seen = []
    original = Simulation.server

    def watched(self, records):
        server = original(self, records)
        inner = server.transport.in_order

        def in_order(instructions, count, phase, *early):
            if phase == "prepare":
                seen.append(book(self.folder)[1])
            return inner(instructions, count, phase, *early)

        server.transport.in_order = in_order
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
        patch.setattr("fedpeft.server.rounds.Server.commit", lambda *_: (_ for _ in ()).throw(KillError))
        with pytest.raises(KillError):
            trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    before = book(tmp_path)
    _, progress = trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    assert book(tmp_path) == before
    (tmp_path / "checkpoint").rename(tmp_path / "gone")
    _, again = trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    assert all(torch.equal(progress.adapter[n], again.adapter[n]) for n in again.adapter)
    (tmp_path / "checkpoint").rename(tmp_path / "gone too")
    with pytest.raises(PrivacyError, match="would take client 0 above its budget"):
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


def test_plain_and_unprotected_runs_have_the_heads_that_they_had(tmp_path):
    for privacy, head in (("", "ridge"), ("none", "zero"), ("dp_sgd(epsilon=8, start=0)", "zero")):
        simulation = Simulation(RunConfig(**TINY, privacy=privacy), tmp_path, ConsoleObserver(QUIET))
        assert simulation.config.head == head
        simulation.close()


def test_bounded_heads_need_no_privacy(tmp_path):
    simulation, progress = trained(tmp_path, head="private_ridge", rounds=1)
    assert progress.round == 1
    simulation.close()


@pytest.mark.parametrize("mechanism", ["dp_sgd", "user_dp"])
def test_noise_without_a_budget_costs_the_share_that_is_asked_for(mechanism, tmp_path):
    simulation, _ = trained(tmp_path, privacy=f"{mechanism}(noise_multiplier=1.0, start=0.5)", head="private_ridge")
    own = simulation.protection
    rounds = max(epsilon({Event(1.0, rate): n}, own.delta) for rate, n in own.mechanism.planned(own.federation))
    alone = epsilon({Event(own.start, 1.0): 1}, own.delta)
    assert alone == pytest.approx(rounds, rel=0.02)
    assert rounds < own.epsilons()[0] < 2 * rounds
    simulation.close()


def test_the_summary_has_the_private_probe_and_the_start(tmp_path):
    summary = simulate(RunConfig(**TINY, privacy="dp_sgd(epsilon=40)"), tmp_path / "run", False, QUIET).as_dict()
    assert 0.25 < summary["private_probe_accuracy"] <= 1
    assert summary["accuracy"] == pytest.approx(summary["private_probe_accuracy"], abs=0.15)
    assert summary["rounds"] == 0
    assert summary["privacy"]["start_share"] == 1
    assert summary["privacy"]["start_noise_multiplier"] == summary["noise_multiplier"]


def test_the_private_probe_is_of_the_rows_that_clients_train_on(tmp_path, monkeypatch):
    seen, statistics = [], PrivateCentroids.statistics

    def noted(self, features, labels, classes):
        seen.append(len(labels))
        return statistics(self, features, labels, classes)

    monkeypatch.setattr(PrivateCentroids, "statistics", noted)
    given = {"strategy": "fedper", "privacy": "dp_sgd(epsilon=8, start=0, raw_metrics=True)", "head": "zero"}
    simulation = Simulation(RunConfig(**TINY | given), tmp_path, ConsoleObserver(QUIET))
    simulation.protection.open(resumed=False)
    assert 0 <= private_probe(simulation) <= 1
    assert seen == simulation.protection.federation.rows.tolist()
    assert sum(seen) < 0.9 * len(simulation.rows.train)
    simulation.close()


def test_what_training_could_say_decides_about_rounds(tmp_path):
    def planned(text, **given):
        simulation = Simulation(RunConfig(**{**TINY, **given}, privacy=text), tmp_path, ConsoleObserver(QUIET))
        simulation.close()
        return simulation.protection

    few, many = planned("dp_sgd(epsilon=1)"), planned("dp_sgd(epsilon=400)")
    assert (few.trains, many.trains) == (False, True)
    assert "no round of training is planned" in few.plan()
    assert "for 2 rounds" in many.plan()
    assert many.start_share == 0.5
    federation = many.federation
    noise = noise_for(400.0, many.delta, 1.0, 1)
    expected = federation.rows.sum() / (noise * math.sqrt(2) * math.sqrt(6) * math.sqrt(federation.layout.numel))
    assert many.mechanism.training_signal(federation) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"privacy": "dp_sgd(epsilon=8)", "head": "centroids"}, "use --head zero, private_centroids or private_ridge"),
        ({"privacy": "dp_sgd(epsilon=8, start=0)", "head": "private_ridge"}, "start=0 leaves nothing"),
        ({"privacy": "dp_sgd(noise_multiplier=1, start=1)"}, "start=1 is all of a budget"),
        ({"privacy": "dp_sgd(epsilon=8, start=1.5)"}, "start must be"),
        ({"privacy": "dp_sgd(epsilon=0.01)"}, r"epsilon 0\.01 is too small for a private start.*at least 0\.\d+"),
        ({"privacy": "user_dp(epsilon=8)", "drift": "label_shift"}, "does not ask clients for"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(given, says, tmp_path):
    with pytest.raises((PrivacyError, ConfigError), match=says):
        Simulation(RunConfig(**{**TINY, **given}), tmp_path, ConsoleObserver(QUIET))


def test_the_smallest_epsilon_that_is_offered_is_taken(tmp_path):
    with pytest.raises(PrivacyError) as refused:
        Simulation(RunConfig(**TINY, privacy="dp_sgd(epsilon=0.01)"), tmp_path, ConsoleObserver(QUIET))
    least = str(refused.value).split("at least ")[1].split(",")[0]
    Simulation(RunConfig(**TINY, privacy=f"dp_sgd(epsilon={least})"), tmp_path, ConsoleObserver(QUIET)).close()


# --------------------------------------------------------------------------------------------------------- real clients


PRIVATE = {"head": "private_centroids", "privacy": "dp_sgd(epsilon=8, start=0.5)"}


def own_book(made, k):
    return [json.loads(line) for line in (made.folder / f"edge-{k}" / LEDGER).read_text().splitlines()[1:]]


@pytest.mark.parametrize("mechanism", [pytest.param("dp_sgd", marks=pytest.mark.slow), "local_dp"])
def test_real_clients_release_once_under_their_own_books(federation, mechanism):
    made = federation(head="auto", privacy=f"{mechanism}(epsilon=8, start=0.5)")
    made.server.present()
    assert made.run().round == 2
    second = made.server.protection
    for k, edge in enumerate(made.server.edges):
        own = edge.protection
        first, *rest = own_book(made, k)
        assert (first["round"], first["charges"]) == (0, [[OWN, own.start, 1.0, 1]])
        assert [line["round"] for line in rest] == [1, 2]
        assert second.ledger.spent[k] == own.ledger.spent[OWN], "the server's book says the same"
        assert own.spent() <= 8
    [line] = [entry for entry in book(made.folder / "server")[1:] if entry["round"] == 0]
    assert {charge[0] for charge in line["charges"]} == {0, 1}
    asked = [i for i in made.server.direct.asked if i.kind == "prepare"]
    sent = [r for r in made.server.direct.reports if r.round == 0]
    assert {r.rows for r in sent} == {1}
    edge, before = made.server.edges[0], own_book(made, 0)
    assert "a second time" in edge.handle(asked[0]).error, "its answer is not the last one any more"
    assert "a second time" in edge.handle(replace(asked[0], base_precision="fp32")).error
    assert own_book(made, 0) == before


def test_the_start_is_answered_again_bit_for_bit_until_training_begins(federation):
    made = federation(**PRIVATE)
    edge = made.server.edges[0]
    from fedpeft.communication.messages import Instruction

    asked = Instruction("prepare", 0, 0, b"")
    given = edge.handle(asked)
    assert given.payload
    assert given.charged == 1
    assert edge.handle(replace(asked, attempt=3)) == given
    assert made.edge(0).handle(asked) == given
    assert len(own_book(made, 0)) == 1
    assert "a second time" in edge.handle(replace(asked, base_precision="fp32")).error
    assert "do not include" in edge.handle(replace(asked, round=1)).error
    assert len(own_book(made, 0)) == 1


def test_a_client_whose_start_has_all_trains_not(federation):
    made = federation(head="auto", privacy="dp_sgd(epsilon=8, start=1)", rounds=3)
    made.server.present()
    assert made.run().round == 0
    assert [len(own_book(made, k)) for k in range(2)] == [1, 1]


def test_a_client_without_a_private_start_refuses_sums_over_its_rows(federation):
    from fedpeft.communication.messages import Instruction

    made = federation(privacy="dp_sgd(epsilon=8)")
    report = made.server.edges[0].handle(Instruction("prepare", 0, 0, b""))
    assert "does not protect" in report.error
    assert not report.payload
