"""Ranks that choose themselves: the cut against dense matrices and against all other cuts; who is cut stays cut."""

from __future__ import annotations

import itertools

import pytest
import torch
from fedpeft.strategies.rank_budget import allocate_ranks

from fedpeft.aggregation.factors import compute_effective_weight
from fedpeft.communication.codec import parse_codec
from fedpeft.conformance.cohorts import create_lora_layout, create_random_state, create_random_updates, run_round
from fedpeft.conformance.peft_cases import Case
from fedpeft.parts.families import strategies
from tests.aggregation.one_round import EQUAL, FORM, MIXED

layout = create_lora_layout([(12, 9), (6, 30), (20, 8)], FORM, head=(3, 5))


def a_round(spec, clients=EQUAL, round_number=2, state=None):
    strategy = strategies.build(spec)
    state = state or create_random_state(layout, 1, torch.float64)
    updates = create_random_updates(strategy, state, layout, clients, 2, round_number)
    return run_round(strategy, state, layout, updates, round_number), updates, state


def dense_target(pair, updates):
    total = sum(u.weight for u in updates)
    return sum(u.weight / total * u.scale * u.get_trained(pair.B) @ u.get_trained(pair.A) for u in updates)


def costs():
    return [pair.in_features + pair.out_features for pair in layout.pairs]


def held(state):
    return [int((state[pair.B].norm(dim=0) > 0).sum()) for pair in layout.pairs]


@pytest.mark.parametrize("clients", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_what_is_kept_is_the_best_of_all_dense_singular_values(clients, share):
    result, updates, _ = a_round(f"rank_budget(share={share})", clients)
    triplets = []
    for number, pair in enumerate(layout.pairs):
        left, singular, right = torch.linalg.svd(dense_target(pair, updates))
        triplets += [
            (float(singular[i] ** 2) / costs()[number], number, singular[i] * torch.outer(left[:, i], right[i]))
            for i in range(4)
        ]
    spent, expected = 0.0, [torch.zeros(p.out_features, p.in_features, dtype=torch.float64) for p in layout.pairs]
    for _, number, matrix in sorted(triplets, key=lambda t: -t[0]):
        spent += costs()[number]
        if spent > share * 4 * sum(costs()):
            break
        expected[number] = expected[number] + matrix
    for pair, matrix in zip(layout.pairs, expected, strict=True):
        assert torch.allclose(compute_effective_weight(pair, result.state, FORM).to_dense(), matrix, atol=1e-9)
        cut = result.state[pair.B].norm(dim=0) == 0
        assert torch.equal(cut, result.state[pair.A].norm(dim=1) == 0), "both factors are 0, or none"


def test_no_other_cut_of_as_many_numbers_keeps_more():
    """All 125 ways to give three layers 0 to 4 ranks each."""
    worth = torch.rand(3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).sort(descending=True)[0]
    price = torch.tensor(costs()).double()
    kept = allocate_ranks(worth, price, 0.6)
    numbers = float((kept.sum(1) * price).sum())
    ways = itertools.product(range(5), repeat=3)
    energies = [
        sum(float(worth[layer, :r].sum()) for layer, r in enumerate(way))
        for way in ways
        if sum(r * p for r, p in zip(way, costs(), strict=True)) <= numbers
    ]
    assert float(worth[kept].sum()) == pytest.approx(max(energies), abs=1e-12)
    assert len(energies) > 20
    assert allocate_ranks(worth, price, 1.0).all()
    assert not allocate_ranks(torch.zeros(3, 4), price, 0.9).any(), "what is worth nothing is not kept"


def test_sensitivity_is_the_round_s_change_along_each_triplet():
    strategy = strategies.build("rank_budget(importance=sensitivity, warmup=9)")
    result, updates, state = a_round("rank_budget(importance=sensitivity, warmup=9)")
    for pair in layout.pairs:
        before, after = (compute_effective_weight(pair, s, FORM).to_dense() for s in (state, result.state))
        left, singular, right = torch.linalg.svd(dense_target(pair, updates))
        expected = [abs(float(singular[i] * (left[:, i] @ (after - before) @ right[i]))) for i in range(4)]
        found = strategy._compute_worth(pair, state, result.state, layout)
        assert found.tolist() == pytest.approx(expected, rel=1e-7)
    cut, _, _ = a_round("rank_budget(importance=sensitivity)")
    by_energy, _, _ = a_round("rank_budget")
    assert held(cut.state) != [4, 4, 4] != held(by_energy.state)


def test_the_first_rounds_keep_all_and_ranks_move_afterwards():
    first, _, _ = a_round("rank_budget(share=0.4, warmup=2)", round_number=2)
    assert held(first.state) == [4, 4, 4]
    state, seen = first.state, []
    for round_number in range(3, 8):
        strategy = strategies.build("rank_budget(share=0.4)")
        updates = create_random_updates(strategy, state, layout, EQUAL, round_number, round_number)
        busy = layout.pairs[round_number % 3]  # the round's clients work on this layer most
        for update in updates:
            update.delta[busy.B] *= 8
        state = run_round(strategy, state, layout, updates, round_number).state
        seen.append(tuple(held(state)))
        assert sum(r * c for r, c in zip(seen[-1], costs(), strict=True)) <= 0.4 * 4 * sum(costs())
    assert len(set(seen)) > 1


def test_a_rank_that_is_cut_stays_zero_on_clients_and_costs_next_to_nothing(tiny):
    case = Case("lora(rank=4)", tiny, "fp32")
    start = dict(case.start)
    for pair in case.layout.pairs:
        start[pair.A], start[pair.B] = start[pair.A].clone(), start[pair.B].clone()
        start[pair.A][1:], start[pair.B][:, 1:] = 0, 0
    sizes = []
    for received in (start, case.start):
        [trained] = case.sequential.train(case.jobs(received)[:1])
        delta = {n: trained.state[n] - received[n] for n in received}
        sizes.append(len(parse_codec("cast | pack | zstd").encode(delta)))
        for pair in case.layout.pairs if received is start else ():
            assert not delta[pair.A][1:].any()
            assert not delta[pair.B][:, 1:].any()
            assert delta[pair.B][:, 0].any()
    assert sizes[0] < 0.35 * sizes[1]
