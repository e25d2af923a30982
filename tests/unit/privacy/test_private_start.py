"""Private starts: what they cost beside the rounds, in whole runs and on real clients."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import norm as normal

from fedpeft.aggregation.heads.private_centroids import PrivateCentroids
from fedpeft.errors import PrivacyError
from fedpeft.privacy.accountant import Event, is_within, merge_events, noise_for
from fedpeft.privacy.engine import LEDGER
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.private_probe import score_private_probe
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error, refuses

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 3, "rounds": 2, "workers": 1, "seed": 3,
        "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "dtype": "fp32",
        "learning_rate": 3e-3, "optimizer": "adamw(warmup=8, head_rate=1.0)",
        "measure": "validation(every=100)"}  # fmt: skip
QUIET = Console(quiet=True)


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
    total = merge_events({start: 1}, {rounds: steps})
    assert is_within(total, delta, budget)
    assert 0.97 * budget - 0.02 < independent(total, delta) <= budget + GRID * (1 + steps)
    assert not is_within(merge_events({start: 1}, {Event(0.985 * rounds.noise, rate): steps}), delta, budget)
    assert noise_for(budget, delta, rate, steps, {start: 1}) > noise_for(budget, delta, rate, steps)


def test_one_release_costs_what_the_closed_form_says():
    noise, delta = noise_for(2.0, 1e-4, 1.0, 1), 1e-4
    a, b = 1 / (2 * noise), 2.0 * noise
    assert normal.cdf(a - b) - math.exp(2.0) * normal.cdf(-a - b) == pytest.approx(delta, rel=0.2)


def test_equal_releases_are_added_up():
    event = Event(1.0, 1.0)
    assert merge_events({event: 1}, {event: 2, Event(2.0, 1.0): 1}) == {event: 3, Event(2.0, 1.0): 1}


def test_plain_and_unprotected_runs_have_the_heads_that_they_had(tmp_path):
    for privacy, head in (("", "ridge"), ("none", "zero"), ("dp_sgd(epsilon=8, start=0)", "zero")):
        simulation = Simulation(RunConfig(**TINY, privacy=privacy), tmp_path, ConsoleObserver(QUIET))
        assert simulation.config.head == head
        simulation.close()


def test_the_private_probe_is_of_the_rows_that_clients_train_on(tmp_path, monkeypatch):
    seen, statistics = [], PrivateCentroids.statistics

    def noted(self, features, labels, classes):
        seen.append(len(labels))
        return statistics(self, features, labels, classes)

    monkeypatch.setattr(PrivateCentroids, "statistics", noted)
    given = {"strategy": "fedper", "privacy": "dp_sgd(epsilon=8, start=0, raw_metrics=True)", "head": "zero"}
    simulation = Simulation(RunConfig(**TINY | given), tmp_path, ConsoleObserver(QUIET))
    simulation.protection.open(resumed=False)
    assert 0 <= score_private_probe(simulation) <= 1
    assert seen == simulation.protection.exposure.rows.tolist()
    assert sum(seen) < 0.9 * len(simulation.rows.train)
    simulation.close()


def test_what_training_could_say_decides_about_rounds(tmp_path):
    def planned(text, **given):
        simulation = Simulation(RunConfig(**{**TINY, **given}, privacy=text), tmp_path, ConsoleObserver(QUIET))
        simulation.close()
        return simulation.protection

    few, many = planned("dp_sgd(epsilon=1)"), planned("dp_sgd(epsilon=400)")
    assert (few.trains, many.trains) == (False, True)
    assert "no round of training is planned" in few.describe_plan()
    assert "for 2 rounds" in many.describe_plan()
    assert many.noise_source.levels.start_share == 0.5
    federation = many.exposure
    noise = noise_for(400.0, many.delta, 1.0, 1)
    expected = federation.rows.sum() / (noise * math.sqrt(2) * math.sqrt(6) * math.sqrt(federation.layout.numel))
    assert many.mechanism.training_signal(federation) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"privacy": "dp_sgd(epsilon=8)", "head": "centroids"}, ("FP7105", "--head")),
        ({"privacy": "dp_sgd(epsilon=8, start=0)", "head": "private_ridge"}, ("FP7051",)),
        ({"privacy": "dp_sgd(noise_multiplier=1, start=1)"}, ("FP7052",)),
        ({"privacy": "dp_sgd(epsilon=8, start=1.5)"}, ("FP1227", "start")),
        ({"privacy": "dp_sgd(epsilon=0.01)"}, ("FP7053", "0.01", "0.09")),
        ({"privacy": "user_dp(epsilon=8)", "drift": "label_shift"}, ("FP1342",)),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(given, says, tmp_path):
    with refuses(*says):
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


@pytest.mark.medium
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
    assert has_error(edge.handle(replace(asked, base_precision="fp32")).error, "FP7035")
    assert has_error(edge.handle(replace(asked, round=1)).error, "FP7033")
    assert len(own_book(made, 0)) == 1


@pytest.mark.medium
def test_a_client_without_a_private_start_refuses_sums_over_its_rows(federation):
    from fedpeft.communication.messages import Instruction

    made = federation(privacy="dp_sgd(epsilon=8)")
    report = made.server.edges[0].handle(Instruction("prepare", 0, 0, b""))
    assert has_error(report.error, "FP7034")
    assert not report.payload
