"""Noise that is related from round to round: its factor, its sensitivity over all patterns, its chains, its turns."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.aggregation.server_optimizer import ServerOptimizer
from fedpeft.parts import format_part
from fedpeft.parts.families import MECHANISMS, PEFT_METHODS, SERVER_NOISES, strategies
from fedpeft.privacy.accountant import Event, epsilon
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import POPULATION
from fedpeft.privacy.mechanisms.user_dp import NoisySum
from fedpeft.privacy.server_noise import compute_correlated_noise, count_turns, extend_chain, remember_chain
from fedpeft.privacy.server_noises.banded import compute_error, optimize_factor
from fedpeft.rounds.sampling import FixedSize, ReachableClients, TurnTaking, create_population
from tests.refusals import refuses
from tests.unit.privacy.test_user_dp import KEY, LAYOUT, STATE, at, compute_norm, update

GOLDEN = json.loads((Path(__file__).parent.parent.parent / "golden" / "banded_jax_privacy.json").read_text())


def patterns(rounds: int, separation: int, most: int | None = None):
    """All sets of rounds that one client may take part in."""
    for size in range(1, (most or rounds) + 1):
        for turns in itertools.combinations(range(rounds), size):
            if all(later - sooner >= separation for sooner, later in itertools.pairwise(turns)):
                yield list(turns)


def sensitivity(factor: np.ndarray, separation: int, most: int | None = None) -> float:
    """Return the largest |F x| over all patterns and signs of contributions of norm 1; by convexity, the maximum."""
    return max(
        float(np.linalg.norm(factor[:, turns] @ np.array(signs)))
        for turns in patterns(len(factor), separation, most)
        for signs in itertools.product([-1, 1], repeat=len(turns))
    )


# ---------------------------------------------------------------------------------------------------------- the factor


@pytest.mark.parametrize(("rounds", "bands"), [(1, 1), (2, 2), (9, 1), (9, 3), (9, 9), (150, 5)])
def test_the_factor_is_banded_and_its_columns_have_norm_1(rounds, bands):
    factor = optimize_factor(rounds, bands)
    assert factor.shape == (rounds, rounds)
    assert np.linalg.norm(factor, axis=0) == pytest.approx(np.ones(rounds))
    for i, j in itertools.product(range(rounds), repeat=2):
        assert 0 <= i - j < bands or factor[i, j] == 0
    assert float(compute_error(torch.tensor(factor))) <= math.sqrt(rounds * (rounds + 1) / 2) * (1 + 1e-9)


@pytest.mark.parametrize("separation", [2, 3, 4])
@pytest.mark.parametrize("rounds", [5, 8])
def test_over_all_patterns_a_client_moves_it_by_the_root_of_its_turns(rounds, separation):
    for bands in range(1, separation + 1):
        factor = optimize_factor(rounds, bands)
        assert sensitivity(factor, separation) == pytest.approx(math.sqrt(math.ceil(rounds / separation)))
    wider = optimize_factor(rounds, separation + 1)
    assert sensitivity(wider, separation) > math.sqrt(math.ceil(rounds / separation)) * 1.01


@pytest.mark.parametrize(("matrix", "separation", "most", "found"), GOLDEN["sensitivities"])
def test_the_patterns_are_those_of_jax_privacy(matrix, separation, most, found):
    assert sensitivity(np.array(matrix), separation, most) == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize(("rounds", "bands", "square"), GOLDEN["errors"])
def test_the_error_is_as_small_as_that_of_jax_privacy(rounds, bands, square):
    assert float(compute_error(torch.tensor(optimize_factor(rounds, bands)))) ** 2 / rounds == pytest.approx(
        square, rel=2e-3
    )


def test_the_factor_is_the_best_of_two_bands_that_a_grid_finds():
    """Two rounds, two bands: F = ((cos a, 0), (sin a, 1))."""

    def square(a):
        factor = torch.tensor([[math.cos(a), 0.0], [math.sin(a), 1.0]], dtype=torch.float64)
        return float(compute_error(factor)) ** 2

    best = min(square(a) for a in np.linspace(0, 1.5, 3001))
    assert float(compute_error(torch.tensor(optimize_factor(2, 2)))) ** 2 == pytest.approx(best, rel=1e-6)


def test_many_rounds_are_nearly_as_good_with_alike_columns(monkeypatch):
    from fedpeft.privacy.server_noises import banded

    own = float(compute_error(torch.tensor(optimize_factor(60, 6))))
    monkeypatch.setattr(banded, "WIDEST", 10)
    optimize_factor.cache_clear()
    alike = float(compute_error(torch.tensor(optimize_factor(60, 6))))
    optimize_factor.cache_clear()
    assert own <= alike < 1.02 * own


# ---------------------------------------------------------------------------------------------------------- the noise


def test_noise_is_the_inverse_of_the_factor_on_what_is_drawn():
    factor = optimize_factor(7, 3)
    like = {"a": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros(4, dtype=torch.float64)}
    chain = [(r, 0) for r in range(1, 8)]
    drawn = [KEY.stream("server noise", *link) for link in chain]
    w = np.stack([np.concatenate([s.standard_normal((2, 3)).ravel(), s.standard_normal(4)]) for s in drawn])
    expected = np.linalg.solve(factor, w)
    for t in range(7):
        found = compute_correlated_noise(factor, chain[: t + 1], KEY, like)
        flat = torch.cat([found["a"].ravel(), found["b"]]).numpy()
        assert flat == pytest.approx(expected[t], abs=1e-12)


def test_rounds_of_the_real_sum_have_the_covariance_of_the_factor():
    """Noise of many entries over rounds, F g, is white: variance (z C)^2, nothing common."""
    factor, memory, rows = optimize_factor(6, 3), {}, []
    for round_number in range(1, 7):
        total = NoisySum(at(noise=0.5, clip=2.0, round_number=round_number), 1.0, 0.5, factor=factor)
        outcome = total.finish(memory)
        memory = outcome.memory
        rows.append(torch.cat([outcome.state[n].ravel() for n in STATE]).numpy())
    white = factor @ np.stack(rows)
    covariance = white @ white.T / white.shape[1]
    assert np.abs(covariance - np.eye(6)).max() < 5 / math.sqrt(white.shape[1])
    assert np.abs(np.stack(rows) @ np.stack(rows).T / white.shape[1] - np.eye(6)).max() > 0.2


@pytest.mark.parametrize("again", [None, 4])
def test_an_optimizer_that_knows_the_noise_is_told_how_much_of_it_a_round_has(again):
    """The squares of the rows of F^-1, of all rounds or, where one was tried again, of those from there on."""
    heard = []

    class Listening(ServerOptimizer):
        def correct_for_noise(self, variance):
            heard.append(variance)
            return self

        def step(self, state, direction, memory):
            return state, memory

    factor, memory = optimize_factor(6, 3), {}
    for round_number in range(1, 7):
        there = replace(
            at(noise=0.5, clip=2.0, round_number=round_number, attempt=int(round_number == again)),
            optimizer=Listening(),
        )
        memory = NoisySum(there, 4.0, 0.5, factor=factor).finish(memory).memory
    before = (again or 1) - 1
    rows = np.concatenate([np.linalg.inv(part) ** 2 @ np.ones(len(part)) for part in
                           (factor[:before, :before], factor[before:, before:])])  # fmt: skip
    assert heard == pytest.approx(rows * (0.5 * 2.0 / 4.0) ** 2)


def test_a_round_tried_again_begins_a_chain_and_so_does_one_after_a_gap():
    memory = {}
    for round_number, attempt, expected in [
        (1, 0, [(1, 0)]),
        (2, 0, [(1, 0), (2, 0)]),
        (3, 1, [(3, 1)]),
        (4, 0, [(3, 1), (4, 0)]),
        (6, 0, [(6, 0)]),
    ]:
        chain = extend_chain(memory, round_number, attempt)
        assert chain == expected
        memory = remember_chain(memory, chain)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_tried_again_no_contribution_shows_more_than_it_is_charged(data):
    """A server may return to earlier states and continue with other inputs.

    A contribution (a round and an attempt, charged once) is only released as coefficients of F, each with its own
    noise. Their squares add up to at most 1.
    """
    rounds, bands = 6, 3
    factor = optimize_factor(rounds, bands)
    after: list[tuple[dict, int]] = [({}, 0)]  # memory, and rounds done
    attempts: dict[int, int] = {}
    shown: dict[tuple[int, int], float] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        memory, done = after[data.draw(st.integers(0, len(after) - 1))]
        if done == rounds:
            continue
        round_number = done + 1
        attempt = attempts.get(round_number, 0)  # other inputs than ever before
        attempts[round_number] = attempt + 1
        chain = extend_chain(memory, round_number, attempt)
        for link in chain:
            shown[link] = shown.get(link, 0.0) + float(factor[round_number - 1, link[0] - 1]) ** 2
        after.append((remember_chain(memory, chain), round_number))
    assert all(square <= 1 + 1e-9 for square in shown.values())


# ---------------------------------------------------------------------------------------------------------- the turns


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 20), st.integers(0, 5))
def test_clients_come_back_no_sooner_than_their_turn(clients, size, seed):
    size = min(size, clients)
    drawn = [TurnTaking(clients, size).draw(seed, round_number) for round_number in range(1, 30)]
    assert all(len(cohort) == size == len(set(cohort)) and cohort == sorted(cohort) for cohort in drawn)
    for client in range(clients):
        turns = [round_number for round_number, cohort in enumerate(drawn) if client in cohort]
        assert all(b - a >= count_turns(clients, size) for a, b in itertools.pairwise(turns))


def test_all_clients_have_turns_and_those_away_are_left_out():
    drawn = {c for round_number in range(1, 200) for c in TurnTaking(11, 4).draw(0, round_number)}
    assert drawn == set(range(11))
    sampler = ReachableClients(TurnTaking(12, 4), lambda: [0, 1, 2, 3, 4])
    cohorts = [sampler.draw(0, round_number) for round_number in range(1, 4)]
    assert sorted(c for cohort in cohorts for c in cohort) == [0, 1, 2, 3, 4]


def test_only_noise_that_is_related_makes_clients_take_turns():
    banded = MECHANISMS.build("user_dp(epsilon=8, noise=banded)")
    assert isinstance(create_population(12, 3, (), banded), TurnTaking)
    assert isinstance(create_population(12, 3, (), MECHANISMS.build("user_dp(epsilon=8)")), FixedSize)
    with refuses("FP7117"):
        create_population(12, 3, (1.0, 0.5) * 6, banded)


# ------------------------------------------------------------------------------------------------------- the mechanism


def exposure(clients=40, cohort=10, rounds=10, strategy="fedit") -> Exposure:
    ones = np.ones(clients, np.int64)
    return Exposure(
        strategy=strategies.build(strategy), method=PEFT_METHODS.build("lora"), layout=LAYOUT, rows=ones, steps=ones,
        participations=ones, batch_size=1, rounds=rounds, cohort=cohort, even=True,
    )  # fmt: skip


def test_a_client_pays_for_each_of_its_turns_and_the_budget_is_met():
    mechanism = MECHANISMS.build("user_dp(epsilon=4, dp_delta=0.001, noise=banded(bands=3))")
    federation = exposure()
    noise = mechanism.multiplier(federation)
    assert mechanism.charges(federation, [3, 5], noise) == dict.fromkeys([3, 5], (Event(noise, 1.0), 1))
    assert mechanism.plan_releases(federation) == [(1.0, 3)]
    assert 3.95 <= epsilon({Event(noise, 1.0): 3}, 1e-3) <= 4
    assert not mechanism.secret_cohort
    assert set(mechanism.start_charges(exposure(clients=4), 1.0)) == {0, 1, 2, 3}
    plain = MECHANISMS.build("user_dp(epsilon=4)")
    assert plain.secret_cohort
    assert set(plain.start_charges(federation, 1.0)) == {POPULATION}


def test_the_first_round_of_the_real_sum_is_clipped_sum_and_noise_over_the_diagonal():
    factor = optimize_factor(6, 3)
    total = NoisySum(at(clip=1.0), 4.0, 0.0, factor=factor)
    total.add(update(0, 3.0))
    moved = {n: t - STATE[n] for n, t in total.finish({}).state.items()}
    assert compute_norm(moved) == pytest.approx(1 / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "given", "words"),
    [
        ("noise=banded(bands=5)", {}, ("FP7083", "4")),
        ("noise=banded", {"cohort": 21}, ("FP7082", "--cohort")),
        ("noise=banded, quantile=0.5", {}, ("FP7070",)),
        ("noise=banded", {"strategy": "rolora"}, ("FP7071", "use fedit, ffa_lora, flasc or fslora")),
        ("noise=banded", {"strategy": "fedsvd"}, ("FP7071", "use fedit, ffa_lora, flasc or fslora")),
    ],
)
def test_what_does_not_go_with_related_noise_is_one_sentence(text, given, words):
    mechanism = MECHANISMS.build(f"user_dp(epsilon=8, {text})")
    with refuses(*words):
        mechanism.check(exposure(**given))


def test_the_text_of_noise_is_read_and_written_again():
    mechanism = MECHANISMS.build("user_dp(epsilon=8.0, noise=banded(bands=3))")
    assert MECHANISMS.build(format_part(mechanism)) == mechanism
    assert replace(mechanism, epsilon=4.0).relation == SERVER_NOISES.build("banded(bands=3)")
    with refuses("FP1231", "banded, independent"):
        MECHANISMS.build("user_dp(epsilon=8, noise=band)")
