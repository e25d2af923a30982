"""The rules that claim to be exact give dW*; flexlora gives the best approximation of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.aggregation.factors import compute_effective_weight
from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape

SHAPES = [(7, 11), (13, 5), (6, 6)]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}

forms = st.builds(AdapterShape, rank=st.integers(1, 5), alpha=st.sampled_from([1.0, 4.0, 7.0, 16.0]))
clients = st.lists(st.builds(Client, form=forms, weight=st.floats(0.1, 50)), min_size=1, max_size=5)
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 10_000)


def mean_of_products(pair, updates):
    """dW*, written as dense matrices and without any code of the package."""
    total = sum(u.weight for u in updates)
    return sum(
        (u.weight / total)
        * (u.form.alpha / u.form.rank)
        * u.get_trained(pair.B).double()
        @ u.get_trained(pair.A).double()
        for u in updates
    )


def weight_after(pair, result, layout):
    """Return what the next model adds to the base: the product of the factors and the residual."""
    added = compute_effective_weight(pair, result.state, layout.form).to_dense().double()
    if pair.module in result.residuals:
        residual = result.residuals[pair.module]
        added = added + residual.left.double() @ residual.right.double()
    return added


def distance(actual, expected):
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-300))


def close(actual, expected, dtype, size=None):
    size = expected.norm() if size is None else size
    return float((actual - expected).norm()) <= TOLERANCE[dtype] * max(float(size), 1e-30)


EXACT = ["ffa_lora", "rolora", "flora", "fedex_lora", "fedsvd", "flexlora(remainder=keep)"]


@pytest.mark.parametrize("spec", EXACT)
@settings(max_examples=25, deadline=None)
@given(clients=clients, dtype=dtypes, seed=seeds, round_number=st.integers(1, 2))
def test_exact_rules_give_the_mean_of_products(spec, clients, dtype, seed, round_number):
    strategy = strategies.build(spec)
    layout = create_lora_layout(SHAPES, AdapterShape(5, 8.0), head=(3, 4))
    state = create_random_state(layout, seed, dtype)
    updates = create_random_updates(strategy, state, layout, clients, seed, round_number)
    result = run_round(strategy, state, layout, updates, round_number)
    for pair in layout.pairs:
        expected = mean_of_products(pair, updates)
        # rounding is relative to what was added up, which can cancel
        size = max(float(u.get_trained(pair.B).norm() * u.get_trained(pair.A).norm()) * u.form.scale for u in updates)
        assert close(weight_after(pair, result, layout), expected, dtype, size)
        assert result.state[pair.A].dtype == result.state[pair.B].dtype == dtype


@settings(max_examples=25, deadline=None)
@given(clients=clients, seed=seeds, svd=st.sampled_from(["auto", "qr", "gram", "dense"]))
def test_flexlora_is_the_best_approximation(clients, seed, svd):
    strategy = strategies.build(f"flexlora(svd={svd})")
    layout = create_lora_layout(SHAPES, AdapterShape(5, 8.0))
    state = create_random_state(layout, seed)
    updates = create_random_updates(strategy, state, layout, clients, seed)
    result = run_round(strategy, state, layout, updates)
    for pair in layout.pairs:
        exact = mean_of_products(pair, updates)
        left, singular, right = torch.linalg.svd(exact, full_matrices=False)
        for rank in (1, 2, 5):
            best = (left[:, :rank] * singular[:rank]) @ right[:rank]
            sent = strategy.dispatch(result.state, layout, AdapterShape(rank, 3.0), 2)
            held = 3.0 / rank * sent[pair.B].double() @ sent[pair.A].double()
            error, least = float((held - exact).norm()), float((best - exact).norm())
            assert error <= least + 1e-5 * float(exact.norm())
