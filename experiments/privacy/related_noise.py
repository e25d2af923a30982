"""python -m experiments.privacy.related_noise: the noise left in user_dp's models, independent or banded.

Computes the root mean square over rounds of the noise in one entry of the model, in clipping norms. Compares
Poisson-sampled clients with independent noise, and clients that take turns with as many bands as their turns allow.
Steps are plain, with rate 1. No model is trained: the numbers follow from the mechanisms.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch

from fedpeft.privacy.accountant import noise_for
from fedpeft.privacy.server_noise import count_turns
from fedpeft.privacy.server_noises.banded import compute_error, optimize_factor


def main() -> None:
    """Compute the noise and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--cohorts", nargs="+", type=int, default=[50, 250, 500, 1250, 2500])
    parser.add_argument("--rounds", nargs="+", type=int, default=[8, 100])
    parser.add_argument("--epsilons", nargs="+", type=float, default=[8, 4, 1])
    given = parser.parse_args()
    print("| rounds | cohort | turns of a client | epsilon | Poisson | banded | banded / Poisson |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for rounds in given.rounds:
        for cohort in given.cohorts:
            apart = count_turns(given.clients, cohort)
            turns = math.ceil(rounds / apart)
            related = float(compute_error(torch.tensor(optimize_factor(rounds, min(apart, rounds))))) / math.sqrt(
                rounds
            )
            alone = float(np.sqrt(np.arange(1, rounds + 1).mean()))
            for epsilon in given.epsilons:
                delta = 0.1 / given.clients
                poisson = alone * noise_for(epsilon, delta, cohort / given.clients, rounds) / cohort
                banded = related * noise_for(epsilon, delta, 1.0, turns) / cohort
                print(
                    f"| {rounds} | {cohort} | {turns} | {epsilon:g} | {poisson:.5f} | {banded:.5f} "
                    f"| {banded / poisson:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
