"""Rules in the geometry of effective weights: other factors of the same update change nothing, attackers little."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.aggregation.factors import compute_effective_weight
from fedpeft.aggregation.robust import compute_middle_mean
from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape

FORM = AdapterShape(4, 8.0)
ROBUST = ["krum", "krum(selected=3)", "norm_bound", "norm_bound(bound=0.5)", "median", "trimmed_mean"]
INVARIANT = ["flora", "flexlora", "flexlora(remainder=keep)", "fedex_lora", *ROBUST]
layout = create_lora_layout([(12, 9), (7, 15)], FORM, head=(3, 5))


def refactored(update, seed):
    """Return the same update with factors (B G, G^-1 A), with a different well-conditioned G per layer."""
    generator = torch.Generator().manual_seed(seed)
    delta = dict(update.delta)
    for pair in layout.pairs:
        lora_a, lora_b = update.get_trained(pair.A), update.get_trained(pair.B)
        transform = torch.randn(len(lora_a), len(lora_a), generator=generator, dtype=lora_a.dtype) + 3 * torch.eye(
            len(lora_a), dtype=lora_a.dtype
        )
        delta[pair.A] = torch.linalg.solve(transform, lora_a) - update.received[pair.A]
        delta[pair.B] = lora_b @ transform - update.received[pair.B]
    return dataclasses.replace(update, delta=delta)


def added(result):
    weights = {}
    for pair in layout.pairs:
        weights[pair.module] = compute_effective_weight(pair, result.state, FORM).to_dense()
        if pair.module in result.residuals:
            weights[pair.module] = weights[pair.module] + result.residuals[pair.module].to_dense()
    return weights | {n: result.state[n] for n in ("head.weight", "head.bias")}


def flat(weights):
    return torch.cat([w.flatten() for w in weights.values()])


@pytest.mark.parametrize("spec", INVARIANT)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_other_factors_of_the_same_update_change_nothing(spec, seed):
    strategy = strategies.build(spec)
    state = create_random_state(layout, seed, torch.float64)
    clients = [Client(AdapterShape(rank, 6.0), weight) for rank, weight in ((4, 1.0), (2, 3.0), (3, 2.0), (4, 2.0))]
    updates = create_random_updates(strategy, state, layout, clients, seed)
    disguised = [refactored(u, seed + i) for i, u in enumerate(updates)]
    one, other = (flat(added(run_round(strategy, state, layout, u))) for u in (updates, disguised))
    assert float((one - other).norm() / one.norm()) < 1e-6


def test_averages_of_factors_do_not_have_the_invariance():
    fedit = strategies.build("fedit")
    state = create_random_state(layout, 1, torch.float64)
    updates = create_random_updates(fedit, state, layout, [Client(FORM)] * 4, 1)
    disguised = [refactored(u, i) for i, u in enumerate(updates)]
    one, other = (flat(added(run_round(fedit, state, layout, u))) for u in (updates, disguised))
    assert float((one - other).norm() / one.norm()) > 0.1


def cohort(attack, attackers=2, honest=8):
    """Honest clients agree up to small differences; the attackers come first and do `attack` to an honest update."""
    state = create_random_state(layout, 1, torch.float64)
    plain = strategies.build("flexlora")
    (common,) = create_random_updates(plain, state, layout, [Client(FORM)], 5, size=0.3)
    noise = create_random_updates(plain, state, layout, [Client(FORM)] * (attackers + honest), 6, size=0.03)
    updates = [dataclasses.replace(u, delta={n: common.delta[n] + d for n, d in u.delta.items()}) for u in noise]
    return state, [attack(u) if u.client < attackers else u for u in updates], updates[attackers:]


def sign_flip(update):
    return dataclasses.replace(update, delta={n: -5 * d for n, d in update.delta.items()})


def scaled(update):
    return dataclasses.replace(update, delta={n: 20 * d for n, d in update.delta.items()})


def boasting(update):
    return dataclasses.replace(sign_flip(update), weight=1000.0)


def not_a_number(update):
    return dataclasses.replace(update, delta={n: d * float("nan") for n, d in update.delta.items()})


def behind_large_factors(seed):
    """Another update, beside ranks that are huge and cancel out: what rounding leaves of them hides its length."""

    def attack(update):
        draw = torch.Generator().manual_seed(10 * seed + update.client)
        delta = dict(update.delta)
        for pair in layout.pairs:
            one, other = torch.randint(-(2**20), 2**20, (2, pair.out_features), generator=draw).double()
            row = torch.randint(-(2**20), 2**20, (pair.in_features,), generator=draw).double()
            last = torch.randn(pair.out_features, generator=draw), torch.randn(pair.in_features, generator=draw)
            lora_b = torch.stack([one + other, -one, -other, last[0].double()], dim=1)
            lora_a = torch.stack([row, row, row, last[1].double()])
            delta |= {pair.B: lora_b - update.received[pair.B], pair.A: lora_a - update.received[pair.A]}
        return dataclasses.replace(update, delta=delta)

    return attack


def distance_to_honest(spec, attack):
    state, updates, honest = cohort(attack)
    after = flat(added(run_round(strategies.build(spec), state, layout, updates)))
    aim = flat(added(run_round(strategies.build("flexlora"), state, layout, honest)))
    start = flat(added(type("Start", (), {"state": state, "residuals": {}})))
    return float((after - aim).norm() / (aim - start).norm())


@pytest.mark.parametrize("attack", [sign_flip, scaled, boasting, not_a_number])
@pytest.mark.parametrize("spec", ["krum", "krum(selected=5)", "median", "trimmed_mean"])
def test_voting_rules_stay_near_the_honest_mean(spec, attack):
    assert distance_to_honest(spec, attack) < 0.5


@pytest.mark.parametrize("attack", [sign_flip, scaled, not_a_number])
def test_a_bound_limits_the_damage(attack):
    assert distance_to_honest("norm_bound", attack) < 0.6


@pytest.mark.parametrize("spec", ["krum", "norm_bound", "median", "trimmed_mean"])
def test_large_factors_hide_no_length(spec):
    assert max(distance_to_honest(spec, behind_large_factors(seed)) for seed in range(5)) < 0.6


@pytest.mark.parametrize("attack", [sign_flip, scaled, behind_large_factors(0)])
def test_the_attacks_are_attacks(attack):
    assert distance_to_honest("flexlora", attack) > 1


def test_krum_sees_all_layers_at_once():
    """An attacker that lies exactly in the honest middle of one layer is judged by the other one too."""
    state, updates, honest = cohort(sign_flip)
    middle, far = layout.pairs
    disguised = [
        dataclasses.replace(u, delta=u.delta | {n: honest[0].delta[n] for n in (middle.A, middle.B)})
        if u.client < 2
        else u
        for u in updates
    ]
    result = run_round(strategies.build("krum"), state, layout, disguised)
    after = compute_effective_weight(far, result.state, FORM).to_dense()
    assert min(float((after - FORM.scale * u.get_trained(far.B) @ u.get_trained(far.A)).norm()) for u in honest) < 1e-9


@pytest.mark.parametrize("far", [100.0, 1e6, 1e12])
def test_krum_tells_scores_apart_beside_an_attacker_that_lies_far_away(far):
    """Beside a colluder's enormous score all others were alike, and the first client was taken, an attacker or not."""
    places = torch.tensor([100.0, 1.3, 1.2, 1.0, 1.1, 1.05, 1.4, 0.7, 0.8, far], dtype=torch.float64)
    shares = strategies.build("krum").reweigh((0.1,) * 10, torch.outer(places, places))
    assert shares == pytest.approx([0, 0, 0, 0, 1, 0, 0, 0, 0, 0])


def test_krum_tells_scores_apart_beside_many_that_are_nothing():
    """Where most clients sent the same, all others were alike, and an attacker with a low number was averaged, too."""
    places = torch.tensor([1000.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    shares = strategies.build("krum(selected=4)").reweigh((0.2,) * 5, torch.outer(places, places))
    assert shares == pytest.approx([0, 0.25, 0.25, 0.25, 0.25])


def test_norm_bound_leaves_short_updates_alone():
    geometry = torch.diag(torch.tensor([1.0, 4.0, 100.0, float("nan")], dtype=torch.float64))
    shares = strategies.build("norm_bound(bound=2.0)").reweigh((0.25, 0.25, 0.25, 0.25), geometry)
    assert shares == pytest.approx((1 / 3, 1 / 3, 0.2 / 3, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (6,), (5, 3, 4), (4, 0)])
def test_the_mean_of_the_middle_leaves_its_votes_as_they_were(shape, dtype):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before, trim = values.clone(), (shape[0] - 1) // 2
    expected = values.sort(dim=0).values[trim : shape[0] - trim].mean(dim=0)
    assert torch.equal(compute_middle_mean(values, trim), expected)
    assert torch.equal(values, before)


@pytest.mark.parametrize(
    ("norms", "median"),
    [([1.0, 8.0], 4.5), ([1.0, 2.0, 9.0], 2.0), ([1.0, 2.0, 4.0, 9.0], 3.0), ([1, 1, 3, 8, 9], 3.0)],
)
def test_norm_bound_without_a_bound_takes_the_median_norm(norms, median):
    norms = torch.tensor(norms, dtype=torch.float64)
    equal = torch.full_like(norms, 1 / len(norms))
    kept = strategies.build("norm_bound").coefficients(equal, torch.diag(norms**2))
    assert torch.allclose(kept * len(norms) * norms, norms.clamp(max=median))
