"""python -m experiments.privacy.shared_noise: a head trained in noisy sums, with noise shared by the clients.

Applies the accounting, grids and integers of `distributed_dp(unit=rows)` to a trained head on features of the frozen
base, with all examples in each round. It begins with the private start from class directions, followed by gradient
descent with momentum. Reports test accuracy against the start with the whole budget, and the server's epsilon if a
fifth of the clients disclose their noise (a tenth may drop out, but none does).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.privacy.frozen_rows import FrozenRows
from fedpeft.aggregation.head_start import VARIANCE
from fedpeft.parts.families import HEADS, PEFT_METHODS, strategies
from fedpeft.peft.adapter import Layout, State, TensorSpec
from fedpeft.privacy.accountant import epsilon
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanisms.distributed_dp import DistributedDP
from fedpeft.privacy.secure_sum.announcement import STATISTICS_BITS, signs
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise

COLLUDING = 0.2


class Clients:
    """Examples of all clients, and the noisy sums that they compute."""

    def __init__(self, given: argparse.Namespace) -> None:
        """Compute the features and the layout of the head."""
        self.rows = FrozenRows.from_arguments(given)
        self.classes, width = self.rows.classes, self.rows.test.shape[1]
        tensors = (
            TensorSpec("head.weight", (self.classes, width), "head", "head"),
            TensorSpec("head.bias", (self.classes,), "head", "head"),
        )
        self.federation = Exposure(
            strategy=strategies.build("fedit"),
            method=PEFT_METHODS.build("lora"),
            layout=Layout(tensors),
            rows=np.array([len(y) for _, y in self.rows.clients]),
            steps=np.ones(given.clients),
            participations=np.full(given.clients, given.rounds),
            batch_size=max(len(y) for _, y in self.rows.clients),
            rounds=given.rounds,
            cohort=given.clients,
            even=True,
            start=True,
            start_entries=self.classes * width + 2,
            trained=(self.classes * (width + 1),) * 2,
        )

    def sum_vectors(
        self, sums: SharedNoise, round_number: int, vectors: list[Tensor], random: np.random.Generator
    ) -> Tensor:
        """Return the sum of the clients' vectors as the server decodes it."""
        count, size = len(vectors), len(vectors[0])
        bits = sums.bits if round_number else STATISTICS_BITS
        integers, turns = sums.integers(count, bits, size, 1, sums.clip, round_number), signs(0, round_number, size)
        total = np.zeros(integers.length, np.int64)
        for vector in vectors:
            total += integers.encode(vector.numpy(), np.ones(1), turns, random)
        found, _ = integers.decode(total % 2**bits, count, turns)
        return torch.from_numpy(found)

    def start_head(self, sums: SharedNoise, random: np.random.Generator) -> State:
        """Return the head of the private start."""
        head = HEADS.build("private_centroids")
        own = [head.statistics(x, y, self.classes) for x, y in self.rows.clients]
        flat = [torch.cat([s["lengths"], s["sums"].flatten()]) for s in own]
        total = self.sum_vectors(sums, 0, flat, random)
        variance = torch.tensor([sums.variance(len(own), 0)])
        told = {"lengths": total[:2], "sums": total[2:].reshape(self.classes, -1), VARIANCE: variance}
        return head.solve(told, self.rows.test.shape[1], self.classes)

    def compute_gradients(self, x: Tensor, y: Tensor, state: State, clip: float) -> Tensor:
        """Return the sum of one client's clipped gradients, weight and bias in one vector."""
        errors = torch.softmax(x @ state["head.weight"].T + state["head.bias"], 1)
        errors[torch.arange(len(y)), y] -= 1
        lengths = errors.norm(dim=1) * (x.square().sum(1) + 1).sqrt()
        errors = errors * (clip / lengths.clamp(min=clip))[:, None]
        return torch.cat([(errors.T @ x).flatten(), errors.sum(0)])

    def train(self, sums: SharedNoise, state: State, rate: float, random: np.random.Generator) -> State:
        """Return the head after all rounds, with momentum 0.9 and a rate that falls to zero."""
        momentum = torch.zeros(self.classes * (self.rows.test.shape[1] + 1), dtype=torch.float64)
        rounds = self.federation.rounds
        for round_number in range(1, rounds + 1):
            vectors = [self.compute_gradients(x, y, state, sums.clip) for x, y in self.rows.clients]
            momentum = 0.9 * momentum + self.sum_vectors(sums, round_number, vectors, random) / sums.expected
            step = -rate * (1 - (round_number - 1) / rounds) * momentum
            weight, bias = step[: -self.classes].reshape(self.classes, -1), step[-self.classes :]
            state = {"head.weight": state["head.weight"] + weight, "head.bias": state["head.bias"] + bias}
        return state


def format_row(clients: Clients, budget: float, given: argparse.Namespace) -> str:
    """Format a row of the table."""
    federation = clients.federation
    found: dict[str, list[Any]] = {"start": [], "trained": []}
    losses = []
    alone, mechanism = (DistributedDP(epsilon=budget, clip=given.clip, start=share) for share in (1.0, given.start))
    whole = alone.sums_of(federation, 0.0, alone.start_noise(federation))
    start, noise = mechanism.start_noise(federation), mechanism.multiplier(federation)
    assert start is not None
    sums = mechanism.sums_of(federation, noise, start)

    def accuracies(state: State) -> tuple[float, float]:
        return clients.rows.compute_accuracies(state["head.weight"], state["head.bias"])

    for seed in range(given.seeds):
        random = np.random.default_rng(seed)
        found["start"].append(accuracies(clients.start_head(whole, random)))
        state = clients.train(sums, clients.start_head(sums, random), given.rate, random)
        found["trained"].append(accuracies(state))
        losses.append(clients.rows.compute_loss(state["head.weight"], state["head.bias"]))
    models = epsilon(mechanism.to_all(federation, noise, start, 1, federation.rounds), mechanism.delta(federation))
    colluding = DistributedDP(epsilon=budget, clip=given.clip, start=given.start, collude=COLLUDING)
    events = {
        colluding.start_charges(federation, start)[0][0]: 1,
        colluding.charges(federation, [0], noise)[0][0]: given.rounds,
    }
    server = epsilon(events, mechanism.delta(federation))
    cells = [f"{np.mean(v, 0)[0]:.3f} / {np.mean(v, 0)[1]:.3f} (± {np.std(v, 0)[0]:.3f})" for v in found.values()]
    growth = sums.later.growth if sums.later else 1.0
    loss = np.mean(losses)
    return f"| {models:.2f} | {server:.2f} | {cells[0]} | {cells[1]} | {loss:.3f} | {noise:.2f} | {growth:.3f} |"


def main() -> None:
    """Measure the heads and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="reuters_r8")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rate", type=float, default=26.0)
    parser.add_argument("--clip", type=float, default=0.3)
    parser.add_argument("--start", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epsilons", nargs="+", type=float, default=[8, 4, 2, 1])
    given = parser.parse_args()
    clients = Clients(given)
    print(
        "| epsilon against all, the server too | the server's, if a fifth collude | start alone, accuracy "
        "/ balanced | trained | its test loss | noise multiplier | growth by rounding |\n"
        "|---:|---:|---:|---:|---:|---:|---:|"
    )
    for budget in given.epsilons:
        print(format_row(clients, budget, given), flush=True)


if __name__ == "__main__":
    main()
