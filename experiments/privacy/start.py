"""python -m experiments.privacy.start: the accuracy of a private start without training, over draws of its noise.

Every client adds its own noise (`dp_sgd`, whole budget for the start), or, with --shared, its share of a common noise
(`distributed_dp`). Prints accuracy and balanced accuracy on the test examples.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch

from experiments.privacy.frozen_rows import FrozenRows
from fedpeft.aggregation.bounded_rows import LENGTH_BOUND, LENGTH_SHARE
from fedpeft.aggregation.head_start import VARIANCE
from fedpeft.aggregation.update import Fold
from fedpeft.parts.families import HEADS, MECHANISMS
from fedpeft.peft.adapter import State
from fedpeft.privacy.accountant import noise_for, rdp_epsilon
from fedpeft.privacy.noise import RunKey
from fedpeft.privacy.secure_sum.announcement import STATISTICS_BITS, signs
from fedpeft.privacy.secure_sum.contribution import count_tensor_entries
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.skellam import Grid, widest_grid


def main() -> None:
    """Measure the starts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="reuters_r8")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument(
        "--peft", default="linear_probe", help="method of the frozen features: linear_probe or whitened_probe"
    )
    parser.add_argument("--pixels", action="store_true", help="use pixels instead of features")
    parser.add_argument("--delta", type=float, default=1e-4)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--heads", nargs="+", default=["private_centroids", "private_ridge"])
    parser.add_argument("--epsilons", nargs="+", type=float, default=[8, 4, 2, 1])
    given = parser.parse_args()
    rows = FrozenRows.from_arguments(given)
    print("| head | epsilon | accuracy | balanced accuracy | deviation over draws |\n|---|---:|---:|---:|---:|")
    for name in given.heads:
        head = HEADS.build(name)
        sums = [head.statistics(x, y, rows.classes) for x, y in rows.clients]
        for budget in [None, *given.epsilons]:
            found = []
            released = _create_shared_release if given.shared and budget else _create_own_release
            release = released(sums, budget, given.delta)
            for draw in range(given.draws if budget else 1):
                total = release(draw)
                state = head.solve(total, rows.test.shape[1], rows.classes)
                found.append(rows.compute_accuracies(state["head.weight"], state["head.bias"]))
            mean, deviation = np.mean(found, axis=0), np.std(found, axis=0)
            print(f"| {name} | {budget or 'none'} | {mean[0]:.3f} | {mean[1]:.3f} | {deviation[0]:.3f} |", flush=True)


def _create_own_release(sums: list[State], budget: float | None, delta: float) -> Callable[[int], State]:
    """Create draws of the sum over clients, each with its own noise."""
    noise = 0.0 if budget is None else noise_for(budget, delta, 1.0, 1)
    mechanism = MECHANISMS.build("dp_sgd(epsilon=1)")

    def release(draw: int) -> State:
        secret, total = RunKey(draw.to_bytes(32, "big")), Fold()
        for client, own in enumerate(sums):
            total.add(mechanism.start_release.protect(own, noise, secret, (0, client)), 1.0)
        return total.sums

    return release


def _create_shared_release(sums: list[State], budget: float | None, delta: float) -> Callable[[int], State]:
    """Create draws of the sum as integers with shares of noise; a tenth of the clients may drop out, but none does."""
    shapes = {n: tuple(t.shape) for n, t in sorted(sums[0].items()) if n != VARIANCE}
    size, clients = count_tensor_entries(shapes), len(sums)
    rows = round(sum(float(own["lengths"][0]) for own in sums) / LENGTH_SHARE * (1 + LENGTH_BOUND) ** 0.5)

    def grid(noise: float) -> Grid:
        return widest_grid(noise, 1.0, STATISTICS_BITS, clients, clients // 10, (size, size), rows)

    low, high = 0.01, 100.0
    while high > 1.002 * low:
        middle = (low * high) ** 0.5
        enough = rdp_epsilon({grid(middle).event(1.0): 1}, delta) <= (budget or 0.0)
        low, high = (low, middle) if enough else (middle, high)
    secure = SharedNoise(mechanism="distributed_dp", dropouts=0.1, rows=True, first=grid(high))
    integers = secure.integers(clients, STATISTICS_BITS, size, 1, 1.0, 0)
    vectors = [np.concatenate([own[name].double().numpy().ravel() for name in shapes]) for own in sums]
    turns = signs(0, 0, size)

    def release(draw: int) -> State:
        random, total = np.random.default_rng(draw), np.zeros(integers.length, np.int64)
        for vector in vectors:
            total += integers.encode(vector, np.ones(1), turns, random)
        found, _ = integers.decode(total % 2**STATISTICS_BITS, clients, turns)
        state, at = {VARIANCE: torch.tensor([secure.variance(clients, 0)])}, 0
        for name, shape in shapes.items():
            state[name] = torch.from_numpy(found[at : (at := at + math.prod(shape))].reshape(shape))
        return state

    return release


if __name__ == "__main__":
    main()
