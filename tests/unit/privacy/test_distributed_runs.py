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

from fedpeft.audit.canaries import run
from fedpeft.audit.canary_audit import CanaryAudit
from fedpeft.parts.families import MECHANISMS, PEFT_METHODS, strategies
from fedpeft.peft.adapter import Layout
from fedpeft.privacy.accountant import Event, noise_for
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.noise_sources import describe_dropouts
from fedpeft.privacy.sampled_rdp import rdp_of_sampled
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import BESIDE, Contribution
from fedpeft.privacy.secure_sum.neighbours import Terms
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.skellam import Grid
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses
from tests.unit.privacy.test_secure_sum import Sum

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": "all", "rounds": 2, "workers": 1, "seed": 3,
        "head": "zero", "peft": "lora(rank=2, layers=1)", "dtype": "fp32", "batch_size": 16, "learning_rate": 0.5,
        "optimizer": "sgd(head_rate=1.0, schedule=constant)", "measure": "validation(every=100)"}  # fmt: skip


def simulated(folder: Path, **given) -> Simulation:
    folder.mkdir(parents=True, exist_ok=True)
    return Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))


def charges(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()[1:]]


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


def test_rows_that_are_told_take_the_place_of_those_that_are_counted():
    """A federation of real clients that knows a number has the noise of a simulation that counts it."""
    counted, told = exposure(5500, 20, 62, 40, 5000), exposure(20, 20, 62, 40, 5000)
    one = MECHANISMS.build("distributed_dp(epsilon=4)")
    other = MECHANISMS.build(f"distributed_dp(epsilon=4, rows={int(counted.rows.sum())})")
    assert one.multiplier(counted) == other.multiplier(told)
    assert one.delta(counted) == other.delta(told)
    assert one.sums_of(counted, 2.0, None) == other.sums_of(told, 2.0, None)
    assert one.start_signal(counted) == other.start_signal(told)


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
    # binom.pmf(2, 59, cohort / 60), that a client may complete a sum, is 2.5e-6 and 7.8e-7 beside delta / 1000 = 1.7e-6
    for cohort, amplified in ((16, False), (17, True)):
        [(event, _)] = hidden.to_all(replace(plan, cohort=cohort), noise, None, 0, 1).items()
        assert (event.rate, event.share) == ((cohort / 60, 1.0) if amplified else (1.0, cohort / 60))


def told_by_there_being_a_sum(clients: int, rate: float, noise: float, budget: float) -> float:
    """Return delta at epsilon `budget` of a round for those who see models, if all others add zeros.

    A client adds 1, or 0 in its place, and sums of fewer than 3 clients are not released.
    """
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


def test_models_tell_of_a_start_as_often_as_it_was_summed():
    mechanism = MECHANISMS.build("distributed_dp(noise_multiplier=2)")
    plan = replace(exposure(100, 10, 10, 1, 2), start=True, start_entries=4)
    [(event, count)] = mechanism.to_all(plan, 2.0, 3.0, 2, 0).items()
    assert (event.rate, event.share, count) == (1.0, 1.0, 2)
    assert event.noise == pytest.approx(3.0, rel=0.01)
    assert mechanism.to_all(plan, 2.0, None, 0, 0) == {}


def test_batches_of_more_rows_than_clients_have_are_all_rows():
    mechanism = MECHANISMS.build("distributed_dp(noise_multiplier=2)")
    assert [mechanism.rate(exposure(100, 10, batch, 1, 2)) for batch in (5, 10, 20)] == [0.5, 1.0, 1.0]


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


def test_cohorts_are_drawn_by_the_key(tmp_path):
    text = "distributed_dp(noise_multiplier=1, threshold=0.5)"
    drawn = []
    for name in ("one", "other"):
        simulation = simulated(tmp_path / name, privacy=text, clients=20, cohort=0.3, rounds=8)
        engine = simulation.protection
        engine.open(resumed=False)
        drawn.append([tuple(engine.enter(round_number, "state", []).cohort) for round_number in range(1, 9)])
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
        ({"privacy": "distributed_dp(epsilon=1)", "strategy": "krum"}, ("FP7100", "krum", "use fedit")),
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
    for size, round_number in ((5, 1), (4, 0)):
        with refuses("FP7080"):
            Announcement(bytes(16), 3, size, BESIDE, 1.0).integers(sums, round_number)
    assert Announcement(bytes(16), 3, 4, BESIDE, 1e9).integers(sums, 1).clip == replace(sums).clip  # its own, not told


def test_the_event_of_a_gaussian_is_what_it_was():
    assert Event(1.0, 0.5) == (1.0, 0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("share", "cohort", "said"),
    [
        (
            0.1,
            4,
            "10% of a cohort may drop out (0 of 4: one that fails voids a sum; 1 may drop out from 10 clients on)",
        ),
        (0.1, 20, "10% of a cohort may drop out (2 of 20)"),
        (0.0, 4, "0% of a cohort may drop out (0 of 4)"),
    ],
)
def test_a_share_of_dropouts_is_printed_as_a_number_of_clients(share, cohort, said):
    assert describe_dropouts(SharedNoise(dropouts=share), cohort) == said
