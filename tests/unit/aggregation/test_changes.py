"""Changes over common columns and rows are the changes that each client's own factors say."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.aggregation.changes import Changes, compute_squared_length
from fedpeft.aggregation.factors import change
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
layout = create_lora_layout([(12, 9), (7, 15)], FORM, head=(3, 5))
PAIR = layout.pairs[0]
FORMS = {"one form": (4, 4, 4), "mixed": (4, 2, 3, 2, 4), "alone": (3,)}


def cohort(ranks, seed, dtype=torch.float64):
    state = create_random_state(layout, seed, dtype)
    clients = [Client(AdapterShape(rank, 3.0 + rank), 1.0 + i) for i, rank in enumerate(ranks)]
    updates = create_random_updates(strategies.build("median"), state, layout, clients, seed)
    return state, updates, [change(PAIR, u).to_dense() for u in updates]


@pytest.mark.parametrize("ranks", FORMS.values(), ids=FORMS)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_inner_products_and_sums_are_those_of_the_whole_matrices(ranks, seed):
    _, updates, dense = cohort(ranks, seed)
    made = Changes.from_updates(PAIR, updates)
    expected = torch.stack([torch.stack([(a * b).sum() for b in dense]) for a in dense])
    assert torch.allclose(made.compute_inner_products(), expected)
    assert torch.allclose(torch.stack([compute_squared_length(PAIR, u) for u in updates]), expected.diagonal())
    coefficients = [0.3 - 0.2 * k for k in range(len(ranks))]
    total = sum(c * D for c, D in zip(coefficients, dense, strict=True))
    assert torch.allclose(made.compute_weighted_sum(coefficients).to_dense(), total)


@pytest.mark.parametrize("ranks", FORMS.values(), ids=FORMS)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_bases_are_the_leading_eigenvectors_of_the_unit_changes(ranks, seed):
    _, updates, dense = cohort(ranks, seed)
    left, right = Changes.from_updates(PAIR, updates).compute_bases(3)
    unit = [D / D.norm() for D in dense]
    for basis, squares in ((left, sum(D @ D.T for D in unit)), (right, sum(D.T @ D for D in unit))):
        values, vectors = torch.linalg.eigh(squares)
        assert torch.allclose(basis.T @ basis, torch.eye(3).double(), atol=1e-6)
        if values[-3] - values[-4] > 1e-3 * values[-1]:
            assert torch.allclose(basis @ basis.T, vectors[:, -3:] @ vectors[:, -3:].T, atol=1e-6)


def test_a_start_that_all_have_is_held_once_and_others_by_themselves():
    _, updates, dense = cohort((4, 4, 2), 1)
    assert Changes.from_updates(PAIR, updates).start_left.shape[1] == 4 + 2
    received = updates[1].received
    other = dataclasses.replace(updates[1], received=received | {PAIR.A: received[PAIR.A] + 1})
    made = Changes.from_updates(PAIR, [updates[0], other, updates[2]])
    assert made.start_left.shape[1] == 4 + 4 + 2
    assert torch.allclose(made.compute_weighted_sum([0, 1, 0]).to_dense(), change(PAIR, other).to_dense())
    assert torch.allclose(made.compute_inner_products()[0, 0], dense[0].square().sum())


def test_clients_that_do_not_count_are_not_read():
    _, updates, dense = cohort((4, 4, 2), 1)
    broken = dataclasses.replace(updates[1], delta={n: d * float("nan") for n, d in updates[1].delta.items()})
    made = Changes.from_updates(PAIR, [updates[0], broken, updates[2]])
    assert torch.allclose(made.compute_weighted_sum([0.5, 0, 1]).to_dense(), 0.5 * dense[0] + dense[2])
    finite = made.compute_inner_products().isfinite()
    assert finite.tolist() == [[True, False, True], [False, False, False], [True, False, True]]
    assert made.compute_weighted_sum([0, 0, 0]).width == 0


def test_the_bases_hold_all_changes_when_they_are_large_enough_and_nothing_else():
    _, updates, dense = cohort((1, 1, 1), 1)
    left, right = Changes.from_updates(PAIR, updates).compute_bases(9)
    for dense_change in dense:
        assert torch.allclose(left @ (left.T @ dense_change @ right) @ right.T, dense_change)
    assert not left[:, 4:].any()  # three columns of dB and the common one of B
    assert torch.allclose((left.T @ left)[:4, :4], torch.eye(4).double())
    coordinates = Changes.from_updates(PAIR, updates).compute_coordinates(left, right)
    assert torch.allclose(coordinates, torch.stack([left.T @ dense_change @ right for dense_change in dense]))


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_the_size_of_an_update_does_not_turn_the_bases(factor):
    _, updates, _ = cohort((4, 4, 4, 4), 1)
    frozen = [dataclasses.replace(u, delta=u.delta | {PAIR.A: torch.zeros_like(u.delta[PAIR.A])}) for u in updates]
    scaled = dataclasses.replace(frozen[0], delta=frozen[0].delta | {PAIR.B: factor * frozen[0].delta[PAIR.B]})
    for one, other in zip(
        Changes.from_updates(PAIR, frozen).compute_bases(3),
        Changes.from_updates(PAIR, [scaled, *frozen[1:]]).compute_bases(3),
        strict=True,
    ):
        assert torch.allclose(one @ one.T, other @ other.T, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 1e4])
def test_an_update_of_nothing_has_no_say_whatever_its_factors(factor):
    """Zero deltas; and B G, G^-1 A with a large G, whose change is rounding alone."""
    _, updates, _ = cohort((4, 4, 4), 1)
    received, delta = updates[0].received, {n: torch.zeros_like(d) for n, d in updates[0].delta.items()}
    if factor:
        generator = torch.Generator().manual_seed(0)
        transform = factor * torch.randn(4, 4, generator=generator, dtype=torch.float64)
        delta[PAIR.B] = received[PAIR.B] @ transform - received[PAIR.B]
        delta[PAIR.A] = torch.linalg.solve(transform, received[PAIR.A]) - received[PAIR.A]
    nothing = dataclasses.replace(updates[0], delta=delta)
    with_it, without = (Changes.from_updates(PAIR, u).compute_bases(3) for u in ([nothing, *updates[1:]], updates[1:]))
    for one, other in zip(with_it, without, strict=True):
        assert torch.allclose(one @ one.T, other @ other.T, atol=1e-3)


def test_a_bound_on_lengths_needs_no_inner_products():
    state, updates, _ = cohort((4, 2, 3), 5)
    by_length = strategies.build("norm_bound")
    by_products = type("All", (type(by_length),), {"needs_products": True})()
    one, other = (run_round(rule, state, layout, updates).state for rule in (by_length, by_products))
    for name in one:
        assert torch.allclose(one[name], other[name])
