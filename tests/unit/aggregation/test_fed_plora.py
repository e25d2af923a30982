"""Fed-PLoRA: owners' means of ranks, and training beside frozen ranks as training on a base with these folded in."""

from __future__ import annotations

from dataclasses import replace

import torch
from fedpeft.clients.executor import RowPrivacy
from fedpeft.clients.private import PrivateExecutor
from fedpeft.clients.rule_half import changes_steps, prepare_job, restrict_to_ranks

from fedpeft.aggregation.factors import place_ranks, select_ranks
from fedpeft.aggregation.owned_ranks import get_held_form
from fedpeft.aggregation.update import Fold
from fedpeft.conformance.peft_cases import Case
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape, Layout
from fedpeft.privacy.noise import RunKey
from tests.aggregation.one_round import EQUAL, FORM, MIXED, a_round, layout, pair, shares
from tests.refusals import refuses


def test_each_rank_is_the_mean_of_those_who_trained_it():
    result, updates, state = a_round("fed_plora", MIXED)
    lora_a, lora_b = state[pair.A].clone(), state[pair.B].clone()
    for j in range(4):
        owners = [(p, u, (u.ranks or tuple(range(4))).index(j)) for p, u in zip(shares(updates), updates, strict=True)
                  if j in (u.ranks or range(4))]  # fmt: skip
        total = sum(p for p, _, _ in owners)
        for p, u, slot in owners:
            lora_a[j] += p / total * u.delta[pair.A][slot]
            lora_b[:, j] += p / total * u.delta[pair.B][:, slot] * u.form.scale / FORM.scale
    assert any(u.ranks for u in updates)
    assert torch.allclose(result.state[pair.A], lora_a, atol=1e-12)
    assert torch.allclose(result.state[pair.B], lora_b, atol=1e-12)


def test_a_rank_that_nobody_trains_stays_and_equal_ranks_are_fedit():
    strategy = strategies.build("fed_plora")
    _, updates, state = a_round("fed_plora", MIXED[:1])
    one, _, _ = a_round("fed_plora", MIXED[:1], state=state)
    [ranks] = [u.ranks for u in updates]
    for j in range(4):
        assert torch.equal(one.state[pair.A][j], state[pair.A][j]) == (j not in ranks)
    whole, _, _ = a_round("fed_plora", EQUAL, state=state)
    plain, _, _ = a_round("fedit", EQUAL, state=state)
    assert all(torch.allclose(whole.state[n], plain.state[n], atol=1e-12) for n in state)
    assert get_held_form(strategy, layout, AdapterShape(1, 2.0)) == FORM
    assert changes_steps(strategy), "which a Trainer refuses"
    assert not changes_steps(strategies.build("fedit"))
    with refuses("FP1023"):
        strategy.check(Layout((layout.by_name["head.weight"],)), [])


def test_updates_mean_the_same_with_all_ranks_or_with_their_own_alone():
    """As they come from a client that holds all, and as they are sent."""
    strategy = strategies.build("fed_plora")
    _, updates, state = a_round("fed_plora", MIXED)
    folds = []
    for whole in (False, True):
        total = Fold()
        for u in updates:
            unit = u.scale / FORM.scale
            if whole:
                delta = {n: d * unit if n == pair.B else d for n, d in u.delta.items()}
                u = replace(u, form=FORM, delta=place_ranks(delta, layout, u.ranks))
            strategy.fold(total, u, state, layout)
        folds.append(strategy.pseudo_gradient(total, layout))
    assert all(torch.allclose(folds[0][n], folds[1][n], atol=1e-12) for n in state)


def test_frozen_ranks_are_as_good_as_folded_into_the_base(tiny):
    case, small, ranks = Case("lora(rank=4)", tiny), Case("lora(rank=2, alpha=16)", tiny), (1, 3)
    assert case.layout.form.scale == small.layout.form.scale
    job = case.jobs()[0]
    own = prepare_job(job, strategies.build("fed_plora"), case.layout, ranks)
    [held] = case.sequential.train([own])
    [batched] = case.create_batched_executor().train([own])
    rest = {}
    for p in case.layout.pairs:
        others = [0, 2]
        assert torch.equal(held.state[p.A][others], job.received[p.A][others])
        assert torch.equal(held.state[p.B][:, others], job.received[p.B][:, others])
        product = job.received[p.B][:, others] @ job.received[p.A][others]
        rest[p.module] = case.layout.form.scale * product
    small.sequential.set_residual(rest)
    received = select_ranks(job.received, case.layout, ranks)
    [folded] = small.sequential.train([replace(job, received=received, form=small.layout.form)])
    _, sent = restrict_to_ranks(own, held, case.layout, ranks)
    for name, tensor in folded.state.items():
        assert torch.allclose(sent.state[name], tensor, atol=1e-9), name
        assert torch.allclose(batched.state[name], held.state[name], atol=1e-9), name
    assert restrict_to_ranks(job, held, case.layout, ()) == (job, held)


def test_under_dp_sgd_frozen_ranks_have_no_say_in_the_clipping(tiny):
    """As with these folded into the base, where they have no gradients that a row's norm could count."""
    case, small, ranks = Case("lora(rank=4)", tiny), Case("lora(rank=2, alpha=16)", tiny), (1, 3)
    key = RunKey(b"0123456789abcdef0123456789abcdef")
    job = replace(case.jobs(optimizer="sgd")[0], privacy=RowPrivacy(1e-3, 0.0, 0.5, key, 0), learning_rate=1.0)
    own = prepare_job(job, strategies.build("fed_plora"), case.layout, ranks)
    [held] = _private(case).train([own])
    others, rest = [0, 2], {}
    for p in case.layout.pairs:
        assert torch.equal(held.state[p.A][others], job.received[p.A][others])
        product = job.received[p.B][:, others] @ job.received[p.A][others]
        rest[p.module] = case.layout.form.scale * product
    executor = _private(small)
    executor.set_residual(rest)
    received = select_ranks(job.received, case.layout, ranks)
    [folded] = executor.train([replace(job, received=received, form=small.layout.form)])
    _, sent = restrict_to_ranks(own, held, case.layout, ranks)
    for name, tensor in folded.state.items():
        moved = (tensor - received[name]).norm()
        assert float(moved) > 1e-6
        assert (sent.state[name] - tensor).norm() < 1e-6 * moved, name


def _private(case):
    return PrivateExecutor(case.model, case.task, case.rows, case.layout, case.method.privacy)
