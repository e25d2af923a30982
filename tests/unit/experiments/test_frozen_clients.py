"""Rounds on features kept once, against one client after another by autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from experiments.privacy.frozen_rows import FrozenRows
from experiments.private_plan.frozen_clients import FrozenClients
from fedpeft.privacy.mechanisms.user_dp import UserDP
from fedpeft.privacy.noise import RunKey
from fedpeft.privacy.training_plans import Training

KEY = RunKey(bytes(32))


def federation(cohort):
    random = torch.Generator().manual_seed(0)
    shards = [
        (torch.randn(n, 5, generator=random).double(), torch.randint(3, (n,), generator=random)) for n in (1, 2, 4, 1)
    ]
    return FrozenClients(FrozenRows(3, shards, shards[0][0], shards[0][1]), rounds=4, cohort=cohort)


@pytest.mark.parametrize(("cohort", "noise"), [(4, 0.0), (2, 0.7)])
def test_rounds_are_those_of_one_client_after_another(cohort, noise):
    clients = federation(cohort)
    begun = {"head.weight": torch.randn(3, 5).double(), "head.bias": torch.zeros(3).double()}
    plan = Training(UserDP(epsilon=8.0, clip=1.0), 4, 1, 0.8, "", momentum=0.5)
    found = clients.train(begun, plan, noise, KEY)
    state = torch.cat([begun["head.weight"], begun["head.bias"][:, None]], 1)
    velocity, clipped, there = torch.zeros_like(state), 0, 0
    for round_number in range(1, 5):
        total = torch.zeros_like(state)
        coins = KEY.stream("cohort", round_number, 0).random(4)
        for coin, (x, y) in zip(coins, clients.rows.clients, strict=True):
            if coin >= cohort / 4:
                continue
            head = state.clone().requires_grad_()
            functional.cross_entropy(x @ head[:, :-1].T + head[:, -1], y).backward()
            step = -0.8 * head.grad
            there, clipped = there + 1, clipped + bool(step.norm() > 1.0)
            total += step * min(1.0, 1.0 / float(step.norm()))
        drawn = torch.from_numpy(KEY.stream("server noise", round_number, 0).standard_normal((3, 6)))
        velocity = 0.5 * velocity + (total + noise * drawn) / cohort
        state = state + velocity
    assert 0 < clipped < there
    torch.testing.assert_close(torch.cat([found["head.weight"], found["head.bias"][:, None]], 1), state)


def test_the_start_adds_blocks_that_are_clipped_as_one():
    clients, sums = federation(4), torch.zeros(3, 5).double()
    for x, y in clients.rows.clients:
        own, logarithms = torch.zeros(3, 5).double(), torch.log2(x.norm(dim=1)) / 10
        for row, label in zip(x, y, strict=True):
            own[label] += row / row.norm()
        lengths = 0.1 * torch.stack([torch.ones_like(logarithms), logarithms]).sum(1)
        block = torch.cat([own.flatten(), lengths]) / 1.02**0.5
        sums += own / 1.02**0.5 / max(1.0, float(block.norm()))
    torch.testing.assert_close(clients.statistics["sums"], sums)
