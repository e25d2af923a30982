"""Noise shared by clients in whole runs: what is released, what is charged, dropouts, kills, and refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus.accountants.utils import get_noise_multiplier
from rich.console import Console
from scipy.stats import binom

from fedpeft.aggregation.strategy import strategies
from fedpeft.audit.canaries import CanaryAudit, run
from fedpeft.communication.messages import Report
from fedpeft.config import RunConfig
from fedpeft.peft.adapter import Layout
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.privacy.accountant import Event, epsilon, noise_for, rdp_epsilon
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanism import MECHANISMS
from fedpeft.privacy.sampled_rdp import rdp_of_sampled
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import BESIDE, Contribution
from fedpeft.privacy.secure_sum.neighbours import Terms
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.skellam import Grid
from fedpeft.run.console import ConsoleObserver
from fedpeft.run.records import Records
from fedpeft.server.exchange import Exchange
from fedpeft.server.rounds import Server
from fedpeft.simulation.simulation import Simulation
from tests.privacy.test_secure_sum import Sum
from tests.refusals import refuses

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": "all", "rounds": 2, "workers": 1, "seed": 3,
        "head": "zero", "peft": "lora(rank=2, layers=1)", "dtype": "fp32", "batch_size": 16, "learning_rate": 0.5,
        "optimizer": "sgd(head_rate=1.0, schedule=constant)", "measure": "validation(every=100)"}  # fmt: skip
MASKS = "threshold=0.5, test_noise=True"


def simulated(folder: Path, **given) -> Simulation:
    folder.mkdir(parents=True, exist_ok=True)
    return Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))


def trained(folder: Path, **given):
    simulation = simulated(folder, **given)
    return simulation, simulation.train(simulation.server(Records(folder)))


def charges(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()[1:]]


def moved(progress) -> dict[str, torch.Tensor]:
    return {name: tensor - progress.started[name] for name, tensor in progress.adapter.items()}


# ---------------------------------------------------------------------------------------------------- what is released


@pytest.mark.parametrize(("unit", "strategy"), [("rows", "fedit"), ("rows", "ffa_lora"), ("clients", "fedit")])
def test_a_round_is_the_noisy_sum_and_nothing_else(tmp_path, unit, strategy):
    """With hardly any noise the model moves by the sum of what clients add, divided by what is expected."""
    given = {"rounds": 1, "strategy": strategy, "batch_size": 200, "learning_rate": 0.5}
    quiet = f"distributed_dp(noise_multiplier=1e-3, unit={unit}, clip=0.5, bits=32, {MASKS})"
    simulation, progress = trained(tmp_path / "quiet", privacy=quiet, **given)
    loud = quiet.replace("1e-3", "0.3")
    _, noised = trained(tmp_path / "loud", privacy=loud, **given)
    federation, names = simulation.protection.federation, sorted(moved(progress))
    sums = simulation.setup.secure_sum
    expected = federation.rows.sum() if unit == "rows" else federation.clients
    assert sums.expected == expected
    names = [n for n in names if moved(noised)[n].any()]
    assert set(names) == simulation.setup.strategy.trained(simulation.setup.layout, 1)
    noise = torch.cat([(moved(noised)[n] - moved(progress)[n]).flatten() for n in names])
    rate = 0.5 if unit == "rows" else 1.0
    assert float(noise.std()) == pytest.approx(rate * 0.3 * 0.5 / expected, rel=0.1)
    step = math.sqrt(sum(float(moved(progress)[n].square().sum()) for n in names)) / rate
    assert 0.01 * 0.5 < step <= 0.5 * (1 + 0.01)  # a mean of vectors of norm C at most


def test_numbers_beside_the_vector_tell_nothing_of_a_client():
    """Rows, losses and norms are the same for all, and what is in the vector is hidden by noise."""
    sums = SharedNoise(mechanism="distributed_dp", clip=1.0, later=Grid(4, 0.01, 100.0, 1e4))
    told = Announcement(bytes(16), 3, 4, BESIDE, 1.0)
    made = [
        Contribution(1.0, rows, loss, {"a": torch.full((4,), length)}).integers(
            told, sums, 1, 1, 0, np.random.default_rng(0)
        )[4:]
        for rows, loss, length in ((3, 0.1, 0.0), (70, 4.0, 9.0))
    ]
    np.testing.assert_array_equal(*made)


def test_a_start_is_one_noisy_sum_of_all_clients(tmp_path):
    given = {"head": "private_centroids", "rounds": 1}
    simulation, progress = trained(tmp_path, privacy=f"distributed_dp(epsilon=8, start=1, {MASKS})", **given)
    engine = simulation.protection
    assert progress.round == 0
    assert [line["round"] for line in charges(tmp_path)] == [0]
    assert 7.9 < engine.epsilons()[0] <= 8
    assert progress.started["head.weight"].any()
    own = MECHANISMS.build("dp_sgd(epsilon=8, start=1)").start_deviation(engine.federation, engine.start)
    assert engine.mechanism.start_deviation(engine.federation, engine.start) == pytest.approx(own / math.sqrt(6))


# ------------------------------------------------------------------------------------------------------ what it costs


def test_the_budget_is_the_server_s_and_both_epsilons_are_told(tmp_path):
    text = f"distributed_dp(epsilon=4, collude=0.2, {MASKS.replace('0.5', '0.67')})"
    simulation, _ = trained(tmp_path, privacy=text, cohort=3, rounds=3)
    engine, told = simulation.protection, simulation.protection.summary()
    worst, models = told["epsilon"], told["privacy"]["epsilon_models"]
    assert 0 < models < worst <= 4
    assert told["privacy"]["epsilon_gaussian_prv"] < told["privacy"]["epsilon_gaussian_rdp"] <= worst * 1.001
    # by hand: each client's sums, with the noise that colluding clients do not know
    assert simulation.setup.secure_sum.rate == 16 * 6 / engine.federation.rows.sum()
    grid, known = simulation.setup.secure_sum.later, 0.2 / 0.9
    for client, events in engine.ledger.spent.items():
        rate = 16 * 6 / engine.federation.rows.sum()
        taken = sum(client in [c[0] for c in line["charges"]] for line in charges(tmp_path))
        variance = grid.variance * (1 - known)
        assert events == {Grid(grid.size, grid.step, grid.radius, variance).event(rate): taken}
    assert worst == max(rdp_epsilon(events, engine.delta) for events in engine.ledger.spent.values())
    assert engine.delta == pytest.approx(0.1 / engine.federation.rows.sum())


def test_rows_that_are_told_take_the_place_of_those_that_are_counted():
    """A federation of real clients that knows a number has the noise of a simulation that counts it."""
    counted, told = exposure(5500, 20, 62, 40, 5000), exposure(20, 20, 62, 40, 5000)
    one = MECHANISMS.build("distributed_dp(epsilon=4)")
    other = MECHANISMS.build(f"distributed_dp(epsilon=4, rows={int(counted.rows.sum())})")
    assert one.multiplier(counted) == other.multiplier(told)
    assert one.delta(counted) == other.delta(told)
    assert one.sums_of(counted, 2.0, None) == other.sums_of(told, 2.0, None)
    assert one.start_signal(counted) == other.start_signal(told)


def test_a_run_whose_clients_are_drawn_too_often_ends_and_is_within_its_budget(tmp_path):
    """The budget of one round: none of two is begun twice by the same client."""
    plan = simulated(tmp_path / "plan", privacy=f"distributed_dp(epsilon=4, {MASKS})", rounds=1).protection
    text = f"distributed_dp(epsilon=4, noise_multiplier={plan.noise!r}, {MASKS})"
    simulation, progress = trained(tmp_path / "run", privacy=text, rounds=5)
    assert progress.round == 1
    assert simulation.protection.epsilons()[0] <= 4


@pytest.mark.parametrize("budget", [1.0, 8.0])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 40), (0.08, 300)])
def test_its_noise_is_hardly_longer_than_a_gaussian_s_under_the_same_conversion(budget, rate, steps):
    """20 clients, 80,000 parameters, 5,485 rows, 16 bits, no dropouts: at most 1.2 times as long."""
    rows, delta = 5500, 1.8e-5
    mechanism = MECHANISMS.build(f"distributed_dp(epsilon={budget}, dropouts=0, dp_delta={delta})")
    noise = mechanism.multiplier(exposure(rows, 20, round(rate * rows / 20), steps, 80_000))
    gaussian = get_noise_multiplier(
        target_epsilon=budget, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp",
        epsilon_tolerance=1e-3,
    )  # fmt: skip
    assert 0.999 < noise / gaussian < 1.2
    exact = noise_for(budget, delta, rate, steps)
    assert exact <= gaussian < noise * 1.001


def exposure(rows: int, clients: int, batch: int, rounds: int, entries: int) -> Exposure:
    return Exposure(
        strategy=strategies.build("fedit"), method=PEFT_METHODS.build("lora"), layout=Layout(()),
        rows=np.full(clients, rows // clients), steps=np.ones(clients), participations=np.full(clients, rounds),
        batch_size=batch, rounds=rounds, cohort=clients, even=True, trained=(entries, entries),
    )  # fmt: skip


def told_with_the_size(clients: int, cohort: int, dropouts: float, noise: float) -> float:
    """D_2 of a round from which the size n of its cohort is known, and then from one entry how many others are in it.

    The others add (C, 0) each, the unit (0, C) or nothing. Of n the unit is one with probability p = n / clients, which
    (x, y) tells in both entries: Q = (1 - p) N(0, 0) + p N(-1, 0), and P has N(-1, 1) in its place.
    """
    whole = 0.0
    for n in range(3, clients + 1):
        p, z = n / clients, noise * math.sqrt(n / (n - math.floor(dropouts * n)))
        x, y = np.meshgrid(np.linspace(-8, 7, 301), np.linspace(-7, 8, 301), indexing="ij", sparse=True)

        def density(a, b, z=z, x=x, y=y):
            return np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * z**2)) / (2 * math.pi * z**2)

        without = (1 - p) * density(0, 0) + p * density(-1, 0)
        change = p * (density(-1, 1) - density(-1, 0))
        whole += binom.pmf(n, clients, cohort / clients) * float((change**2 / without).sum() * 0.05**2)
    return math.log1p(whole)


def test_the_size_of_a_cohort_that_its_noise_tells_is_counted_against_models():
    clients, cohort, noise = 60, 6, 0.7
    plan = replace(exposure(600, clients, 10, 1, 2), cohort=cohort)
    mechanism = MECHANISMS.build(f"distributed_dp(unit=clients, noise_multiplier={noise}, dropouts=0.3, bits=32)")
    [(event, count)] = mechanism.to_all(plan, noise, None, 0, 1).items()
    assert count == 1
    told = told_with_the_size(clients, cohort, 0.3, noise)
    assert told <= rdp_of_sampled(*event)[0]
    hidden = replace(mechanism, dropouts=0.0)  # all noise together is as long whatever the cohort
    assert rdp_of_sampled(*hidden.grid(plan, noise).event(cohort / clients))[0] < told
    [(event, _)] = hidden.to_all(replace(plan, cohort=30), noise, None, 0, 1).items()
    assert (event.rate, event.share) == (0.5, 1.0)


def told_by_there_being_a_sum(clients: int, rate: float, noise: float, budget: float) -> float:
    """delta at epsilon `budget` of a round against those who see models, where all others add zeros: a client adds 1,
    or 0 in its place, and there is no sum of fewer than 3."""
    more, two = binom.sf(2, clients - 1, rate), binom.pmf(2, clients - 1, rate)
    seen = np.linspace(-10.0, 11.0, 20001)
    without, added = (np.exp(-(((seen - x) / noise) ** 2) / 2) / math.sqrt(2 * math.pi) / noise for x in (0, 1))
    one = (more + two) * rate * added + more * (1 - rate) * without
    other = (more + two * rate) * without
    return float(np.maximum(one - math.exp(budget) * other, 0).sum() * (seen[1] - seen[0]))


def test_that_there_is_a_sum_at_all_is_counted_against_models():
    """Of 10 clients 3 are drawn: with 2 others a round tells whether the tenth was, and coins amplify less."""
    rate, noise, budget = 0.3, 1.0, 1.0
    coins = told_by_there_being_a_sum(10**6, rate, noise, budget)  # whose cohorts are never too small
    assert told_by_there_being_a_sum(10, rate, noise, budget) > 1.2 * coins
    mechanism = MECHANISMS.build(f"distributed_dp(unit=clients, noise_multiplier={noise}, dropouts=0, bits=32)")
    plan = replace(exposure(100, 10, 10, 1, 2), cohort=3)
    [(event, _)] = mechanism.to_all(plan, noise, None, 0, 1).items()
    assert (event.rate, event.share) == (1.0, rate)
    [(event, _)] = mechanism.to_all(replace(plan, cohort=10), noise, None, 0, 1).items()
    assert (event.rate, event.share) == (1.0, 1.0)


# --------------------------------------------------------------------------------------------------- dropouts and kills


def dropping(monkeypatch, clients: tuple[int, ...], round: int) -> None:
    real = Exchange.in_order

    def in_order(exchange, instructions, total, phase, *early):
        asked = {i.client: i for i in instructions}
        for report in real(exchange, list(asked.values()), total, phase, *early):
            i = asked[report.client]
            gone = (i.round, i.step) == (round, 3) and report.client in clients
            yield Report(report.client, report.round, b"", error="gone") if gone else report

    monkeypatch.setattr(Exchange, "in_order", in_order)


def test_a_sum_with_too_little_noise_is_void_and_charged(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(ConsoleObserver, "say", lambda self, text: said.append(text))
    text = f"distributed_dp(noise_multiplier=1, dropouts=0.2, {MASKS})"
    dropping(monkeypatch, (1, 2), round=2)
    _, progress = trained(tmp_path, privacy=text, rounds=2)
    assert any("4 vectors have arrived of 6; with fewer than 5" in line for line in said)
    assert [line["round"] for line in charges(tmp_path)] == [1, 2]
    assert progress.round == 2
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert (lines[-2]["update_norm"] > 0, lines[-1]["update_norm"]) == (True, 0.0)


@pytest.mark.parametrize(("least", "dies"), [(0, False), (8, False), (9, True)])
def test_a_member_helps_no_sum_with_too_little_noise(least, dies):
    made = Sum(9, threshold=0.5, dropping={3: [7]})
    terms = replace(made.terms, least=least)
    made.coordinator.terms = terms
    for member in made.members.values():
        member.terms = terms
    if not dies:
        np.testing.assert_array_equal(made.run(), made.expected())
        return
    with refuses("FP6128", "9"):
        made.run()


def test_members_who_wait_for_different_numbers_are_in_different_sums():
    assert Terms(2, 0.5, 16, 9, b"").digest != Terms(2, 0.5, 16, 9, b"", 1).digest


def test_a_round_that_is_tried_again_has_new_noise_and_a_new_charge(tmp_path, monkeypatch):
    """Stopped before its checkpoint: two sums with the same noise could differ by a client that has dropped out."""
    real, kept = Server.commit, {}

    def stop(self, progress):
        if progress.round == 2 and not kept:
            kept.update(progress.adapter)
            raise KeyboardInterrupt
        real(self, progress)

    monkeypatch.setattr(Server, "commit", stop)
    text = f"distributed_dp(noise_multiplier=1, {MASKS})"
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, privacy=text)
    simulation, progress = trained(tmp_path, privacy=text)
    assert [(line["round"], line["attempt"]) for line in charges(tmp_path)] == [(1, 0), (2, 0), (2, 1)]
    assert not torch.equal(progress.adapter["head.weight"], kept["head.weight"])
    engine = simulation.protection
    events = engine.mechanism.to_all(engine.federation, 1.0, None, 0, 3)
    assert engine.told_to_all() == epsilon(events, engine.delta) > 0


def test_cohorts_are_drawn_by_the_key(tmp_path):
    text = "distributed_dp(noise_multiplier=1, threshold=0.5)"
    drawn = []
    for name in ("one", "other"):
        simulation = simulated(tmp_path / name, privacy=text, clients=20, cohort=0.3, rounds=8)
        engine = simulation.protection
        engine.open(resumed=False)
        drawn.append([tuple(engine.enter(round, "state", []).cohort) for round in range(1, 9)])
        assert len(set(map(len, drawn[-1]))) > 1
        assert [len(line["charges"]) for line in charges(tmp_path / name)] == [len(cohort) for cohort in drawn[-1]]
    assert drawn[0] != drawn[1]


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"privacy": "distributed_dp"}, ("FP7049",)),
        ({"privacy": "distributed_dp(noise_multiplier=0)"}, ("FP7063",)),
        ({"privacy": "distributed_dp(noise_multiplier=1e-7)"}, ("FP7054",)),
        ({"privacy": "distributed_dp(epsilon=1e-3)", "rounds": 50}, ("FP7064", "0.001", "FP7084", "give bits=")),
        ({"privacy": "distributed_dp(epsilon=1, bits=8)"}, ("FP7064", "FP7084", "8", "give bits=")),
        ({"privacy": "distributed_dp(epsilon=1)", "strategy": "krum"}, ("FP7100", "krum", "take")),
        ({"privacy": "distributed_dp(epsilon=1)", "strategy": "flexlora"}, ("FP7100", "flexlora")),
        ({"privacy": "distributed_dp(epsilon=1)", "strategy": "flasc"}, ("FP7061",)),
        ({"privacy": "distributed_dp(epsilon=1)", "codec": "small"}, ("FP7101",)),
        ({"privacy": "distributed_dp(epsilon=1)", "head": "ridge"}, ("FP7105", "--head")),
        ({"privacy": "distributed_dp(epsilon=1)", "local_work": "steps(5)"}, ("FP1325",)),
        ({"privacy": "distributed_dp(epsilon=1)", "drift": "fedprox(mu=1.0)"}, ("FP1328",)),
        ({"privacy": "distributed_dp(epsilon=1, raw_metrics=True)"}, ("FP7056", "raw_metrics")),
        ({"privacy": "distributed_dp(epsilon=1, audit=True)"}, ("FP7056", "audit")),
        ({"privacy": "distributed_dp(epsilon=1, dropouts=0.4)"}, ("FP7059",)),
        ({"privacy": "distributed_dp(epsilon=1, collude=0.9, dropouts=0.2)"}, ("FP7058",)),
        ({"privacy": "distributed_dp(epsilon=1, unit=tokens)"}, ("FP1227", "unit")),
        ({"privacy": "distributed_dp(epsilon=1)", "cohort": 2}, ("FP7079", "3", "2")),
        ({"privacy": "distributed_dp(epsilon=1, unit=clients, dp_delta=0.2)"}, ("FP7050",)),
    ],
)
def test_what_would_not_protect_is_refused_in_a_sentence(tmp_path, given, says):
    with refuses(*says) as error:
        simulated(tmp_path / "run", **given)
    assert "\n" not in str(error.value)


def test_audits_have_none_of_it():
    with refuses("FP7011"):
        run(CanaryAudit(privacy="distributed_dp(noise_multiplier=1)"), Path("nowhere"))
    with refuses("FP7010", "secure_sum"):
        run(CanaryAudit(privacy="secure_sum"), Path("nowhere"))


def test_a_sum_that_has_no_noise_is_not_taken_part_in():
    sums = SharedNoise(mechanism="distributed_dp", later=Grid(4, 0.01, 100.0, 1e4))
    for size, round in ((5, 1), (4, 0)):
        with refuses("FP7080"):
            Announcement(bytes(16), 3, size, BESIDE, 1.0).integers(sums, round)
    assert Announcement(bytes(16), 3, 4, BESIDE, 1e9).integers(sums, 1).clip == replace(sums).clip  # its own, not told


def test_the_event_of_a_gaussian_is_what_it_was():
    assert Event(1.0, 0.5) == (1.0, 0.5, 0.0, 1.0)


def test_sums_of_gradients_step_at_the_rate_that_an_undone_round_has_left(tmp_path, monkeypatch):
    norms = []
    monkeypatch.setattr(ConsoleObserver, "round_done", lambda _self, result: norms.append(result.update_norm))
    public = {"measure": "validation(every=100, public=True)", "safeguard": "undo(rise=0, rate=0.001)", "rounds": 3}
    _, progress = trained(tmp_path / "run", privacy=f"distributed_dp(unit=rows, noise_multiplier=1, {MASKS})", **public)
    assert progress.standing.rate <= 0.001, "noise alone raises the loss of one round"
    assert min(norms) < 0.01 * max(norms)
