"""python -m experiments.private_plan.frozen_whitened: a head on whitened, cached features with one common noise.

Follows the plan of `distributed_dp(epsilon=...)` for examples, without messages. The start uses noisy moments at half
of the budget. Then come steps along noisy sums of all examples' gradients, at rates that fall to zero. The noise is
Gaussian. Prints one line per setting: test accuracy of the start and after the rounds, and test loss, as means over
draws.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fedpeft.clients.private import compute_clipping_factors
from torch import Tensor

from experiments import exit_on_error
from experiments.privacy.frozen_rows import FrozenRows
from fedpeft.aggregation.head_start import VARIANCE, HeadStart, require_variation
from fedpeft.aggregation.whitening import BIAS, WEIGHT, Whitening
from fedpeft.parts.families import HEADS
from fedpeft.peft.adapter import State
from fedpeft.privacy.accountant import noise_for
from fedpeft.privacy.mechanism import HALF

PART = 100
"""Number of examples whose gradients are in memory at once."""


@dataclass(frozen=True)
class Setting:
    """One line: budget, clipping norm, rate of the first round, and whether features are whitened."""

    epsilon: float
    clip: float
    rate: float
    whiten: bool


class FrozenWhitened:
    """All examples and their statistics.

    Args:
        rows: the features.
        head: the head start.
        rounds: rounds of training.
    """

    def __init__(self, rows: FrozenRows, head: HeadStart, rounds: int) -> None:
        """Concatenate the clients' features, and compute their statistics."""
        self.rows, self.head, self.rounds = rows, head, rounds
        self.x = torch.cat([x for x, _ in rows.clients])
        self.y = torch.cat([y for _, y in rows.clients])
        self.sums = head.statistics(self.x, self.y, rows.classes)

    def run(self, setting: Setting, seed: int) -> tuple[float, float, float]:
        """Return the accuracy (%) of the start and after the rounds, and the final loss."""
        random = torch.Generator().manual_seed(seed)
        whole = noise_for(setting.epsilon, 0.1 / len(self.y), 1.0, 1)
        start, later = whole / math.sqrt(HALF), whole * math.sqrt(self.rounds / (1 - HALF))

        def add_noise(tensor: Tensor, deviation: float) -> Tensor:
            return tensor + deviation * torch.randn(tensor.shape, generator=random, dtype=torch.float64)

        total = {name: add_noise(tensor, start) for name, tensor in self.sums.items() if name != VARIANCE}
        total[VARIANCE] = torch.tensor([start**2])
        state = self.head.solve(total, self.x.shape[1], self.rows.classes)
        whitening = require_variation(self.head).compute_whitening(total, self.x.shape[1]) if setting.whiten else None
        before = self._compute_accuracy(state)
        for round_number in range(self.rounds):
            found = self._sum_gradients(state, setting.clip, whitening)
            mean = {name: add_noise(t, later * setting.clip) / len(self.y) for name, t in found.items()}
            step = mean if whitening is None else whitening.step(mean)
            rate = setting.rate * (1 - round_number / self.rounds)
            state = {name: state[name] - rate * step[name] for name in state}
        return before, self._compute_accuracy(state), self.rows.compute_loss(state[WEIGHT], state[BIAS])

    def _sum_gradients(self, state: State, clip: float, whitening: Whitening | None) -> State:
        """Return the sum of all examples' clipped gradients."""
        sums = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        for x, y in zip(torch.split(self.x, PART), torch.split(self.y, PART), strict=True):
            errors = torch.softmax(x @ state[WEIGHT].T + state[BIAS], 1)
            errors[torch.arange(len(y)), y] -= 1
            of_rows = {WEIGHT: errors[:, :, None] * x[:, None, :], BIAS: errors}
            of_rows = of_rows if whitening is None else whitening.compute_gradients(of_rows)
            factors = compute_clipping_factors(of_rows.values(), clip)
            for name, gradient in of_rows.items():
                sums[name] += torch.einsum("b,b...->...", factors, gradient)
        return sums

    def _compute_accuracy(self, state: State) -> float:
        return 100 * self.rows.compute_accuracies(state[WEIGHT], state[BIAS])[0]


def main() -> None:
    """Measure the settings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="code_types")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--peft", default="linear_probe", help="linear_probe, or head2toe")
    parser.add_argument("--head", default="private_ridge(dimensions=512)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epsilons", nargs="+", type=float, default=[8, 1])
    parser.add_argument("--clips", nargs="+", type=float, default=[1.0])
    parser.add_argument("--rates", nargs="+", type=float, default=[4.0])
    parser.add_argument("--plain", action="store_true", help="do not whiten the features")
    given: Any = parser.parse_args()
    frozen = FrozenWhitened(FrozenRows.from_arguments(given), HEADS.build(given.head), given.rounds)
    print("| epsilon | clip | rate | start (%) | start and rounds (%) | test loss |\n|---:|---:|---:|---:|---:|---:|")
    for epsilon, clip, rate in itertools.product(given.epsilons, given.clips, given.rates):
        setting = Setting(epsilon, clip, rate, whiten=not given.plain)
        start, end, loss = np.mean([frozen.run(setting, seed) for seed in range(given.seeds)], axis=0)
        print(f"| {epsilon:g} | {clip:g} | {rate:g} | {start:.1f} | {end:.1f} | {loss:.3f} |", flush=True)


if __name__ == "__main__":
    with exit_on_error():
        main()
