"""The relation between the noise of different rounds, if the server adds it.

    release of round t = x_t + z C g_t,        g = F^-1 w,  w standard normal, new in every round

F (rounds, rounds) is lower triangular. Its columns have norm 1. The columns of rounds that one client may take part in
are orthogonal: whatever clients add, F x moves by sqrt(k) C for k rounds. So a round costs its clients as much as a
release with independent noise of multiplier z. Within this constraint F can make g small in sums over rounds. F = 1 is
independent noise.

A round that is repeated with other inputs begins a new chain: its noise is related to no earlier round's. So no row of
F x that holds a client's contribution is ever released twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg import solve_triangular

from fedpeft.aggregation.server_optimizer import OptimizerState
from fedpeft.peft.adapter import State
from fedpeft.privacy.noise import RunKey, draw_gaussian

CHAIN = "noise"
"""Key of the chain in the optimizer state: rounds and attempts, no noise."""

Attempts = Sequence[tuple[int, int]]
"""Consecutive rounds: the round number, from 1, and the attempt."""


class ServerNoise(ABC):
    """A relation between the noise of rounds. Subclasses are frozen dataclasses."""

    turns: ClassVar[bool] = False
    """Whether clients take turns in known cohorts, instead of joining by secret coins."""

    @abstractmethod
    def check(self, separation: int) -> None:
        """Reject clients that return too soon.

        Args:
            separation: the least number of rounds between two rounds of one client.

        Raises:
            PrivacyError: the message contains the remedy.
        """

    @abstractmethod
    def factor(self, rounds: int, separation: int) -> np.ndarray | None:
        """Return F (rounds, rounds); None: the identity, which means independent noise."""


def count_turns(clients: int, cohort: int) -> int:
    """Return after how many rounds a client takes its next turn: the number of disjoint cohorts, at least 1."""
    return max(1, clients // cohort)


def extend_chain(memory: OptimizerState, round_number: int, attempt: int) -> list[tuple[int, int]]:
    """Return the chain that a round's noise belongs to; its last entry is the round itself."""
    kept = memory.get(CHAIN, {}).get("attempts")
    chain = [] if kept is None else [(int(r), int(a)) for r, a in kept.tolist()]
    follows = bool(chain) and chain[-1][0] == round_number - 1 and not attempt
    return [*(chain if follows else []), (round_number, attempt)]


def remember_chain(memory: OptimizerState, chain: Attempts) -> OptimizerState:
    """Return the optimizer state with the chain in it."""
    return memory | {CHAIN: {"attempts": torch.tensor(list(chain), dtype=torch.int64)}}


def compute_correlated_noise(factor: np.ndarray, chain: Attempts, key: RunKey, like: State) -> State:
    """Return g of the last round of a chain, a tensor for each of `like`.

    Row by row, g_t = (w_t - sum_s F_ts g_s) / F_tt. The noise of earlier rounds is drawn again, because it is never
    written down. That takes one draw for each round of the chain.
    """
    bands = int((factor != 0).sum(0).max())
    rows: deque[tuple[int, State]] = deque(maxlen=max(1, bands - 1))
    now: State = {}
    for round_number, attempt in chain:
        stream = key.stream("server noise", round_number, attempt)
        now = {name: draw_gaussian(stream, tensor) for name, tensor in like.items()}
        t = round_number - 1
        for s, earlier in rows:
            if factor[t, s]:
                for name, tensor in now.items():
                    tensor.sub_(earlier[name], alpha=float(factor[t, s]))
        for tensor in now.values():
            tensor.div_(float(factor[t, t]))
        rows.append((t, now))
    return now


def compute_noise_variance(factor: np.ndarray, chain: Attempts) -> float:
    """Return the variance of each entry of g in a chain's last round.

    It is the squared norm of the last row of F^-1, over the chain's rounds.
    """
    rounds = [round_number - 1 for round_number, _ in chain]
    last = np.zeros(len(rounds))
    last[-1] = 1.0
    row = solve_triangular(factor[np.ix_(rounds, rounds)], last, trans="T", lower=True)
    return float(row @ row)
