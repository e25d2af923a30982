"""python -m experiments.private_plan.frozen_clients: the plan of a budget for clients, on cached frozen features.

Follows the plan of `user_dp(epsilon=...)` for training the head alone. Start, noise, secret cohorts, clipping and steps
are those of a run, but on frozen features and without messages. Prints one line per budget: test accuracy of the
private probe (the start with the whole budget), of the start with half of it, and after the rounds; mean and deviation
over draws.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments import exit_on_error
from experiments.privacy.frozen_rows import FrozenRows
from fedpeft.parts.families import HEADS, PEFT_METHODS, strategies
from fedpeft.peft.adapter import Layout, State, TensorSpec
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanisms.user_dp import UserDP
from fedpeft.privacy.noise import RunKey
from fedpeft.privacy.training_plans import Training


class FrozenClients:
    """Features of all clients' examples in one table, and the computations of a round.

    Args:
        rows: the features.
        rounds: rounds of training.
        cohort: expected size of a cohort.
    """

    def __init__(self, rows: FrozenRows, rounds: int, cohort: int) -> None:
        """Concatenate the clients' features, and compute their clipped statistics."""
        self.rows, self.classes, self.width = rows, rows.classes, rows.test.shape[1]
        counts = np.array([len(y) for _, y in rows.clients])
        self.counts = torch.from_numpy(counts)
        features = torch.cat([x for x, _ in rows.clients])
        self.x = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
        self.y = torch.cat([y for _, y in rows.clients])
        self.client = torch.repeat_interleave(self.counts)
        # all pairs of one client's examples: a gradient's norm is a sum over them
        first = torch.cumsum(self.counts, 0) - self.counts
        ranges = [torch.arange(int(f), int(f + n)) for f, n in zip(first, self.counts, strict=True)]
        self.left = torch.cat([torch.repeat_interleave(r, len(r)) for r in ranges])
        self.right = torch.cat([r.repeat(len(r)) for r in ranges])
        self.products = (self.x[self.left] * self.x[self.right]).sum(1)
        self.statistics = _sum_bounded(rows)
        tensors = (
            TensorSpec("head.weight", (self.classes, self.width), "head", "head"),
            TensorSpec("head.bias", (self.classes,), "head", "head"),
        )
        self.federation = Exposure(
            strategy=strategies.build("fedit"),
            method=PEFT_METHODS.build("linear_probe"),
            layout=Layout(tensors),
            rows=counts,
            steps=np.ones(len(counts), np.int64),
            participations=np.full(len(counts), rounds),
            batch_size=int(counts.max()),
            rounds=rounds,
            cohort=cohort,
            even=True,
            start=True,
            start_entries=self.classes * self.width + 2,
            trained=(self.classes * (self.width + 1),) * 2,
        )

    def start_head(self, mechanism: UserDP, noise: float, key: RunKey) -> State:
        """Return the head of the private start."""
        total = mechanism.start_release.finish(self.statistics, noise, key, 0)
        return HEADS.build("private_centroids").solve(total, self.width, self.classes)

    def train(self, state: State, plan: Training, noise: float, key: RunKey) -> State:
        """Return the head after all rounds; each client of a cohort takes one clipped step on its examples."""
        assert isinstance(plan.mechanism, UserDP)
        clip, clients, cohort = plan.mechanism.clip, self.federation.clients, self.federation.cohort
        weight = torch.cat([state["head.weight"], state["head.bias"][:, None]], dim=1)
        velocity = torch.zeros_like(weight)
        for round_number in range(1, self.federation.rounds + 1):
            errors = torch.softmax(self.x @ weight.T, dim=1)
            errors[torch.arange(len(self.y)), self.y] -= 1
            errors /= self.counts[self.client][:, None]
            inner = (errors[self.left] * errors[self.right]).sum(1) * self.products
            squares = torch.zeros(clients, dtype=inner.dtype).index_add_(0, self.client[self.left], inner)
            lengths = plan.learning_rate * squares.clamp(min=0).sqrt()
            taken = plan.learning_rate * (clip / lengths.clamp(min=1e-12)).clamp(max=1)
            taken[torch.from_numpy(key.stream("cohort", round_number, 0).random(clients) >= cohort / clients)] = 0
            total = -(errors * taken[self.client][:, None]).T @ self.x
            drawn = torch.from_numpy(key.stream("server noise", round_number, 0).standard_normal(tuple(total.shape)))
            velocity = plan.momentum * velocity + (total + noise * clip * drawn) / cohort
            weight = weight + velocity
        return {"head.weight": weight[:, :-1], "head.bias": weight[:, -1]}

    def compute_accuracy(self, state: State) -> float:
        """Return a head's accuracy on the test examples."""
        return self.rows.compute_accuracies(state["head.weight"], state["head.bias"])[0]


def _sum_bounded(rows: FrozenRows) -> dict[str, Tensor]:
    """Return the sum of all clients' statistics, each clipped as one vector."""
    head, mechanism = HEADS.build("private_centroids"), UserDP(epsilon=1.0)
    total: dict[str, Tensor] = {}
    for x, y in rows.clients:
        for name, tensor in mechanism.start_release.take(head.statistics(x, y, rows.classes)).items():
            total[name] = total[name] + tensor if name in total else tensor
    return total


def format_line(clients: FrozenClients, budget: float, given: argparse.Namespace) -> str:
    """Format a row of the table."""
    federation, mechanism = clients.federation, UserDP(epsilon=budget)
    alone = replace(mechanism, start=1.0).start_noise(federation)
    assert alone is not None
    found: list[list[Any]] = [[], [], []]
    plan = mechanism.plan_training(federation) if mechanism.trains(federation) else None
    for seed in range(given.seeds):
        key = RunKey(seed.to_bytes(32, "big"))
        found[0].append(clients.compute_accuracy(clients.start_head(mechanism, alone, key)))
        if plan is not None and isinstance(plan.mechanism, UserDP):
            start, noise = plan.mechanism.start_noise(federation), plan.mechanism.multiplier(federation)
            assert start is not None
            state = clients.start_head(mechanism, start, key)
            found[1].append(clients.compute_accuracy(state))
            found[2].append(clients.compute_accuracy(clients.train(state, plan, noise, key)))
    cells = [f"{100 * np.mean(f):.1f} ± {100 * np.std(f):.1f}" if f else "-" for f in found]
    return f"| {budget:g} | {mechanism.training_signal(federation):.1f} | {' | '.join(cells)} |"


def main() -> None:
    """Measure the heads and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="20newsgroups")
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--cohort", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epsilons", nargs="+", type=float, default=[8, 4, 2, 1])
    given = parser.parse_args()
    clients = FrozenClients(FrozenRows.from_arguments(given), given.rounds, given.cohort)
    print("| epsilon | signal to noise | private probe (%) | start (%) | start and rounds (%) |")
    print("|---:|---:|---:|---:|---:|")
    for budget in given.epsilons:
        print(format_line(clients, budget, given), flush=True)


if __name__ == "__main__":
    with exit_on_error():
        main()
