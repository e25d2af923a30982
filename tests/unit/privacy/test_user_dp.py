"""The server's half of user-level privacy, in small numbers: clipping, noise, the denominator, adaptive clipping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.aggregation.update import Update
from fedpeft.parts.families import SERVER_OPTIMIZERS, strategies
from fedpeft.peft.adapter import AdapterShape, Layout, TensorSpec, compute_norm
from fedpeft.privacy.abilities import ServerRound
from fedpeft.privacy.mechanisms.local_dp import LocalDP
from fedpeft.privacy.mechanisms.user_dp import Adaptation, NoisySum
from fedpeft.privacy.noise import RunKey

KEY = RunKey(b"0123456789abcdef0123456789abcdef")
LAYOUT = Layout(
    (
        TensorSpec("w.lora_A.weight", (2, 5), "lora_A", "w"),
        TensorSpec("w.lora_B.weight", (3, 2), "lora_B", "w"),
        TensorSpec("head.weight", (4, 3), "head", "head"),
    ),
    AdapterShape(2, 4.0),
)
STATE = {name: torch.zeros(shape) for name, shape in LAYOUT.shapes.items()}


def at(strategy="fedit", noise=0.0, clip=1.0, round_number=1, attempt=0, optimizer="sgd"):
    return ServerRound(
        strategies.build(strategy),
        SERVER_OPTIMIZERS.build(optimizer),
        LAYOUT,
        STATE,
        round_number,
        attempt,
        KEY,
        noise,
        clip,
    )


def update(client: int, length: float, names=LAYOUT.names) -> Update:
    generator = torch.Generator().manual_seed(client)
    delta = {n: torch.randn(LAYOUT.shapes[n], generator=generator) for n in names}
    scale = length / compute_norm(delta)
    return Update(client, 1.0, LAYOUT.form, STATE, {n: t * scale for n, t in delta.items()})


def step(total: NoisySum):
    outcome = total.finish({})
    return {n: outcome.state[n] - STATE[n] for n in STATE}, outcome


def test_long_updates_are_clipped_as_a_whole_and_short_ones_are_not():
    total = NoisySum(at(clip=1.0), 4.0, 0.0, None)
    updates = [update(0, 3.0), update(1, 0.5), update(2, 100.0)]
    for one in updates:
        total.add(one)
    moved, _ = step(total)
    for name in STATE:
        expected = (updates[0].delta[name] / 3 + updates[1].delta[name] + updates[2].delta[name] / 100) / 4
        assert torch.allclose(moved[name], expected, atol=1e-6)


def test_one_client_moves_the_sum_by_at_most_the_clipping_norm():
    for length in (0.1, 1.0, 1e6):
        total = NoisySum(at(clip=0.7), 5.0, 0.0, None)
        total.add(update(3, length))
        moved, _ = step(total)
        assert compute_norm(moved) <= 0.7 / 5 * (1 + 1e-6)


def test_with_a_huge_clip_and_no_noise_it_is_the_plain_mean():
    from fedpeft.aggregation.aggregator import LinearAggregator

    for strategy in ("fedit", "ffa_lora", "rolora", "fedsvd"):
        here = at(strategy, clip=1e9)
        names = sorted(here.strategy.list_trained(LAYOUT, 1))
        private, plain = (
            NoisySum(here, 3.0, 0.0, None),
            LinearAggregator(here.strategy, here.optimizer, LAYOUT, STATE, 1),
        )
        for one in (update(k, 1.0 + k, names) for k in range(3)):
            private.add(one)
            plain.add(one)
        expected = plain.finish({}).state
        found = private.finish({}).state
        assert all(torch.allclose(found[n], expected[n], atol=1e-6) for n in expected)


def test_noise_has_the_stated_scale_and_an_empty_cohort_takes_it_too():
    noise, clip, expected = 2.0, 0.5, 8.0
    drawn = []
    for round_number in range(1, 200):
        moved, _ = step(NoisySum(at(noise=noise, clip=clip, round_number=round_number), expected, noise, None))
        drawn.append(torch.cat([t.flatten() for t in moved.values()]))
    values = torch.stack(drawn).double()
    assert float(values.std()) == pytest.approx(noise * clip / expected, rel=0.03)
    correlation = np.corrcoef(values[:-1].flatten(), values[1:].flatten())[0, 1]
    assert abs(correlation) < 0.06


def test_another_attempt_has_other_noise_and_the_same_one_the_same():
    steps = [step(NoisySum(at(noise=1.0, attempt=a), 4.0, 1.0, None))[0]["head.weight"] for a in (0, 0, 1)]
    assert torch.equal(steps[0], steps[1])
    assert not torch.allclose(steps[0], steps[2])


def test_what_is_frozen_this_round_gets_no_noise():
    moved, _ = step(NoisySum(at("ffa_lora", noise=1.0), 4.0, 1.0, None))
    assert not moved["w.lora_A.weight"].any()
    assert moved["w.lora_B.weight"].all()


# ------------------------------------------------------------------------------------------------- adaptive clipping


def test_the_clipping_norm_moves_towards_the_quantile():
    """Norms 1, 2, ..., 20: their median is 10.5; too large a norm falls, too small a one rises."""
    for clip, falls in ((30.0, True), (3.0, False)):
        adapt = Adaptation(quantile=0.5, rate=0.2, count_noise=1e-9)
        total = NoisySum(at(clip=clip), 20.0, 0.0, adapt)
        for k in range(20):
            total.add(update(k, 1.0 + k))
        _, outcome = step(total)
        assert (outcome.clip < clip) == falls
        below = sum(1.0 + k <= clip for k in range(20)) / 20
        assert outcome.clip == pytest.approx(clip * np.exp(-0.2 * (below - 0.5)))


def test_it_settles_at_the_quantile():
    adapt, clip = Adaptation(quantile=0.8, rate=0.5, count_noise=0.01), 0.01
    for round_number in range(1, 80):
        total = NoisySum(at(clip=clip, round_number=round_number), 20.0, 0.0, adapt)
        for k in range(20):
            total.add(update(k, 1.0 + k))
        clip = step(total)[1].clip
    assert 15.5 < clip < 17.5


def test_sum_and_count_together_cost_one_release():
    """z^-2 = z_sum^-2 + (2 s_b)^-2: two Gaussian releases compose to one of the charged noise."""
    for noise, count_noise in ((1.0, 0.8), (2.0, 5.0)):
        spread = Adaptation(0.5, 0.2, count_noise).sum_noise(noise)
        assert spread > noise
        assert spread**-2 + (2 * count_noise) ** -2 == pytest.approx(noise**-2)


# ------------------------------------------------------------------------------------------------------------- local


def test_local_release_is_clipped_and_noised_at_twice_the_radius():
    mechanism = LocalDP(noise_multiplier=0.5, clip=0.3)
    long = {"x": torch.full((200, 200), 5.0, dtype=torch.float64)}
    exact = mechanism.protect_update(long, 0.0, KEY, (1, 0, 0))
    assert compute_norm(exact) == pytest.approx(0.3)
    noise = mechanism.protect_update(long, 0.5, KEY, (1, 0, 0))["x"] - exact["x"]
    assert float(noise.std()) == pytest.approx(0.5 * 2 * 0.3, rel=0.02)
    short = {"x": torch.full((2, 2), 0.01, dtype=torch.float64)}
    assert torch.equal(mechanism.protect_update(short, 0.0, KEY, (1, 0, 0))["x"], short["x"])


def test_momentum_on_noisy_sums_is_a_sum_of_releases_and_costs_nothing():
    """Two rounds: what momentum adds up are the directions that sgd would have stepped along."""
    memory, moved = {}, []
    for round_number in (1, 2):
        released = NoisySum(at(noise=1.0, round_number=round_number), 4.0, 1.0).finish({}).state
        total = NoisySum(at(noise=1.0, round_number=round_number, optimizer="momentum(beta=0.5)"), 4.0, 1.0)
        outcome = total.finish(memory)
        memory = outcome.memory
        moved.append((released, outcome.state))
    (one, first), (two, second) = moved
    for name in STATE:
        assert torch.allclose(first[name], one[name])
        assert torch.allclose(second[name] - STATE[name], 0.5 * one[name] + two[name] - 1.5 * STATE[name], atol=1e-6)


def test_the_server_optimizer_is_told_the_variance_of_the_noise_in_a_mean():
    heard = []
    optimizer = SERVER_OPTIMIZERS.build("adam(corrected=True)")
    here = replace(at(noise=1.5, clip=2.0), optimizer=optimizer)
    plain = type(optimizer).correct_for_noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(optimizer), "correct_for_noise", lambda self, variance: heard.append(variance) or plain(self, variance)
        )
        NoisySum(here, 4.0, 1.5).finish({})
    assert heard == [pytest.approx((1.5 * 2.0 / 4.0) ** 2)]
