"""Rules for tasks one after the other, each against a slow computation of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedpeft.strategies.inf_lora import design_directions

from fedpeft.aggregation.owned_ranks import get_held_form
from fedpeft.aggregation.task_rules import TaskBoundary
from fedpeft.aggregation.update import Cohort, Fold, Update
from fedpeft.conformance.cohorts import create_lora_layout, create_random_state
from fedpeft.parts.families import HEADS, strategies
from fedpeft.peft.adapter import AdapterShape
from tests.refusals import refuses

TASKS, RANK, IN, OUT = 3, 2, 11, 7
FORM, WHOLE = AdapterShape(RANK, 8.0), AdapterShape(TASKS * RANK, TASKS * 8.0)
layout = create_lora_layout([(OUT, IN)], WHOLE, head=(5, 4))
(pair,) = layout.pairs
state = create_random_state(layout, 1, torch.float64)
random = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def upper(matrix: torch.Tensor) -> torch.Tensor:
    return matrix[tuple(torch.triu_indices(*matrix.shape))]


def turn(rule, task, sums, state, memory=None, moment="begin"):
    classes = ((0, 1), (2, 3), (4,))[task]
    return rule.cross_boundary(TaskBoundary(moment, task, classes, layout, state, memory or {}, sums))


def update(client, weight, ranks, delta, answer=None):
    return Update(client, weight, FORM, state, delta, ranks=ranks, answer=answer or {})


# ------------------------------------------------------------------------------------------------------- ranks of tasks


def test_each_tasks_ranks_are_the_mean_of_the_clients_that_are_at_it():
    rule = strategies.build(f"o_lora(tasks={TASKS}, every=4, late=2)")
    assert rule.get_whole_form(FORM) == WHOLE
    assert get_held_form(rule, layout, FORM) == WHOLE
    total, sums, weights = Fold(), {}, {}
    met = set()
    for client in range(6):
        ranks = rule.choose_ranks(layout, FORM, 7, 5, client)  # the server's second task begins with round 5
        met.add(ranks)
        own = {pair.A: drawn(RANK, IN), pair.B: drawn(OUT, RANK)}
        rule.fold(total, update(client, client + 1.0, ranks, own), state, layout)
        for slot, j in enumerate(ranks):
            for name, column in ((pair.A, own[pair.A][slot]), (pair.B, own[pair.B][:, slot])):
                sums[name, j] = sums.get((name, j), 0) + (client + 1.0) * column
                weights[j, name] = weights.get((j, name), 0) + client + 1.0
    assert met == {(0, 1), (2, 3)}, "some are late"
    step = rule.pseudo_gradient(total, layout)
    for j in range(WHOLE.rank):
        for name, column in ((pair.A, step[pair.A][j]), (pair.B, step[pair.B][:, j])):
            expected = sums[name, j] / weights[j, name] if (name, j) in sums else torch.zeros_like(column)
            assert torch.allclose(column, expected, atol=1e-12)


def test_a_tasks_clients_have_one_rank():
    rule = strategies.build(f"o_lora(tasks={TASKS}, every=4)")
    rule.check(layout, [FORM, FORM])
    with refuses("FP1027"):
        rule.check(layout, [FORM, AdapterShape(1, 8.0)])
    with refuses("FP1026"):
        rule.check(layout.select(["head.weight", "head.bias"]), [])


def test_o_loras_pull_is_the_gradient_of_its_penalty():
    rule = strategies.build(f"o_lora(strength=0.3, tasks={TASKS}, every=1)")
    lora_a = state[pair.A].clone().requires_grad_()
    penalty = 0.3 * sum((lora_a[old] @ lora_a[new]).abs() for old in range(2) for new in (2, 3))
    [gradient] = torch.autograd.grad(penalty, lora_a)
    spec = layout.by_name[pair.A]
    pulled = rule.compute_pull(spec, lora_a.detach(), state[pair.A], (2, 3))
    assert torch.allclose(pulled[2:4], gradient[2:4], atol=1e-12)
    assert not pulled[[0, 1, 4, 5]].any(), "earlier tasks stand still"
    assert rule.compute_pull(spec, lora_a.detach(), state[pair.A], (0, 1)) is None, "nothing is before the first"
    assert rule.compute_pull(layout.by_name[pair.B], state[pair.B], state[pair.B], (2, 3)) is None


# ------------------------------------------------------------------------------------------------------------- InfLoRA


def test_inf_lora_designs_by_the_pooled_rows_outside_of_earlier_inputs():
    """Against singular vectors of the pooled, projected rows; clients' sums are all that the rule sees."""
    rule = strategies.build(f"inf_lora(energy=0.6, tasks={TASKS}, every=4)")
    after, memory, memory_basis = state, {}, np.zeros((IN, 0))
    for task in range(TASKS):
        shards = [drawn(9, IN) @ torch.diag(torch.linspace(1, 4, IN, dtype=torch.float64)) for _ in range(3)]
        before = after
        after, memory = turn(rule, task, {pair.A: upper(sum(x.T @ x for x in shards))}, after, memory)
        pooled = torch.cat(shards).numpy()
        _, singular, right = np.linalg.svd(pooled - pooled @ memory_basis @ memory_basis.T)
        rows = after[pair.A][task * RANK : (task + 1) * RANK].numpy() * 3**0.5
        assert np.allclose(rows @ rows.T, np.eye(RANK), atol=1e-10)
        assert np.allclose(rows.T @ rows, right[:RANK].T @ right[:RANK], atol=1e-10)
        assert np.abs(rows @ memory_basis).max(initial=0) < 1e-10, "no input of an earlier task is answered"
        total, count = (pooled**2).sum(), 0
        covered = ((pooled @ memory_basis) ** 2).sum()
        while covered < 0.6 * total:
            covered += singular[count] ** 2
            count += 1
        memory_basis = np.concatenate([memory_basis, right[:count].T], axis=1)
        held = memory[pair.A].numpy()
        assert np.allclose(held @ held.T, memory_basis @ memory_basis.T, atol=1e-10)
        others = [j for j in range(WHOLE.rank) if j // RANK != task]
        assert torch.equal(after[pair.A][others], before[pair.A][others])
        assert torch.equal(after[pair.B], before[pair.B])
    assert 0 < memory_basis.shape[1] < IN
    assert turn(rule, 0, {}, after, memory, "end") == (after, memory)


def test_inf_lora_has_no_direction_where_all_are_taken():
    rule = strategies.build(f"inf_lora(energy=1.0, tasks={TASKS}, every=4)")
    x = drawn(30, IN)
    after, memory = turn(rule, 0, {pair.A: upper(x.T @ x)}, state)
    assert memory[pair.A].shape == (IN, IN)
    after, memory = turn(rule, 1, {pair.A: upper(x.T @ x)}, after, memory)
    assert not after[pair.A][RANK : 2 * RANK].any()
    assert memory[pair.A].shape == (IN, IN)
    assert rule.list_trained(layout, 1) == {pair.B, "head.weight", "head.bias"}
    assert rule.choose_question("begin", layout) == "layer_inputs"
    assert not rule.choose_question("end", layout)


def test_inf_lora_keeps_no_more_directions_than_just_hold_the_energy():
    """Of the variances 3 and 1, the first is 0.75 of all."""
    moments = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    _, held = design_directions(moments, torch.zeros(2, 0, dtype=torch.float64), 1, 0.75)
    assert held.abs().tolist() == [[1.0], [0.0]]


# ---------------------------------------------------------------------------------------------------------- prototypes


@pytest.mark.parametrize("head", ["centroids", "ridge"])
def test_prototypes_are_the_head_of_all_rows_met_so_far(head):
    rule = strategies.build(f"prototypes(head={head}, tasks={TASKS}, every=4)")
    part = HEADS.build(head)
    features = [drawn(20, 4) + task for task in range(2)]
    labels = [torch.arange(20) % 2 + 2 * task for task in range(2)]
    old = [part.statistics(x + 9, y, 5) for x, y in zip(features, labels, strict=True)]  # before the adapter is tuned
    new = [part.statistics(x, y, 5) for x, y in zip(features, labels, strict=True)]
    after, memory = state, {}
    for task in range(2):
        after, memory = turn(rule, task, old[task], after, memory)
        assert torch.isfinite(after["head.weight"]).all()
        after, memory = turn(rule, task, new[task], after, memory, "end")
    pooled = part.solve(part.statistics(torch.cat(features), torch.cat(labels), 5), 4, 5)
    assert torch.allclose(after["head.weight"], pooled["head.weight"], atol=1e-10)
    assert torch.allclose(after["head.bias"][:4], pooled["head.bias"][:4], atol=1e-10)
    scores = torch.cat(features) @ after["head.weight"].T + after["head.bias"]
    assert int(scores.argmax(1).max()) < 4, "a class that nobody has met is never the answer"
    assert rule.list_trained(layout, 1) == {pair.A, pair.B}
    with refuses("FP1494"):
        rule.check(create_lora_layout([(OUT, IN)], WHOLE), [WHOLE])


# ---------------------------------------------------------------------------------------------------------------- LoRM


@pytest.mark.parametrize("moments", ["full", "diagonal"])
@pytest.mark.parametrize("round_number", [1, 2])
def test_lorm_is_the_least_squares_solution(moments, round_number):
    """Against a dense system in the factor's entries: sum_k tr (B A - B_k A_k) G_k (B A - B_k A_k)^T is least."""
    rule = strategies.build(f"lorm(moments={moments})")
    factor, shape = (pair.B, (OUT, WHOLE.rank)) if round_number % 2 else (pair.A, (WHOLE.rank, IN))
    assert rule.list_trained(layout, round_number) == {factor, "head.weight", "head.bias"}
    updates, systems = [], []
    for client in range(3):
        x = drawn(25, IN)
        input_gram = x.T @ x if moments == "full" else torch.diag(x.square().sum(0))
        answer = {pair.A: upper(input_gram) if moments == "full" else input_gram.diagonal()}
        made = Update(client, 1.0, WHOLE, state, {factor: drawn(*shape)}, answer=answer)
        updates.append(made)
        own = made.get_trained(pair.B) @ made.get_trained(pair.A)
        root = torch.linalg.cholesky(input_gram)
        columns = []
        for entry in range(shape[0] * shape[1]):
            unit = torch.zeros(shape[0] * shape[1], dtype=torch.float64)
            unit[entry] = 1.0
            unit = unit.reshape(shape)
            columns.append(((unit @ state[pair.A] if round_number % 2 else state[pair.B] @ unit) @ root).flatten())
        systems.append((torch.stack(columns, dim=1), (own @ root).flatten()))
    dense, wanted = (torch.cat(parts) for parts in zip(*systems, strict=True))
    expected = torch.linalg.lstsq(dense, wanted[:, None], driver="gelsd").solution.reshape(shape)
    gathered = rule.gather(pair, state, layout, Cohort(updates, (1 / 3,) * 3, round_number, 0))
    found, still = (gathered.B, gathered.A) if round_number % 2 else (gathered.A, gathered.B)
    assert torch.allclose(found, expected, atol=1e-10)
    assert torch.equal(still, state[pair.A if round_number % 2 else pair.B])


def test_lorm_leaves_directions_alone_that_no_input_has():
    rule = strategies.build("lorm")
    squares = torch.ones(IN, dtype=torch.float64)
    squares[3] = 0.0
    made = Update(0, 1.0, WHOLE, state, {pair.A: drawn(WHOLE.rank, IN)}, answer={pair.A: squares})
    lora_a = rule.gather(pair, state, layout, Cohort([made], (1.0,), 2, 0)).A
    assert torch.equal(lora_a[:, 3], state[pair.A][:, 3])
    rest = [j for j in range(IN) if j != 3]
    assert torch.allclose(lora_a[:, rest], made.get_trained(pair.A)[:, rest], atol=1e-12)
