"""What relates the noise of one round to that of the others, where the server adds it.

    release of round t = x_t + z C g_t,        g = F^-1 w,  w standard normal, new in every round

F (rounds, rounds) is lower triangular. Its columns have norm 1, and those of rounds that one client may take part in
are orthogonal: whatever clients add, F x moves by sqrt(k) C for k rounds, so a round costs its clients what a release
with independent noise of multiplier z does, and g is free to be smaller where rounds are added up. F = 1 is independent
noise.

A round that is tried again with other inputs begins a new chain: its noise is related to no earlier round's. So no row
of F x that holds what a client added is ever released twice.
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
from fedpeft.families import SERVER_NOISES as SERVER_NOISES
from fedpeft.peft.adapter import State
from fedpeft.privacy.noise import RunKey, gaussian

CHAIN = "noise"
"""What the server remembers of noise, beside its optimizer's memory: rounds and attempts, no draws."""

Attempts = Sequence[tuple[int, int]]
"""Of consecutive rounds: the round, from 1, and its attempt."""


class ServerNoise(ABC):
    """One relation. Subclasses are frozen dataclasses."""

    turns: ClassVar[bool] = False
    """Whether clients take turns in known cohorts, instead of joining by secret coins."""

    @abstractmethod
    def check(self, separation: int) -> None:
        """Refuse clients that come back too soon: `separation` rounds after they took part, at the earliest.

        Raises:
            PrivacyError: says what to do.
        """

    @abstractmethod
    def factor(self, rounds: int, separation: int) -> np.ndarray | None:
        """F (rounds, rounds); None: 1."""


def turns_of(clients: int, cohort: int) -> int:
    """After how many rounds a client takes its turn again: so many cohorts there are of clients that differ."""
    return max(1, clients // cohort)


def longer(memory: OptimizerState, round_number: int, attempt: int) -> list[tuple[int, int]]:
    """The chain that a round's noise belongs to, the round itself last."""
    kept = memory.get(CHAIN, {}).get("attempts")
    chain = [] if kept is None else [(int(r), int(a)) for r, a in kept.tolist()]
    follows = bool(chain) and chain[-1][0] == round_number - 1 and not attempt
    return [*(chain if follows else []), (round_number, attempt)]


def remembered(memory: OptimizerState, chain: Attempts) -> OptimizerState:
    """The memory with the chain in it."""
    return memory | {CHAIN: {"attempts": torch.tensor(list(chain), dtype=torch.int64)}}


def correlated(factor: np.ndarray, chain: Attempts, key: RunKey, like: State) -> State:
    """g of the last round of a chain, a tensor for each of `like`.

    Row by row, g_t = (w_t - sum_s F_ts g_s) / F_tt: what is drawn for earlier rounds is drawn again, as it is never
    written down. That takes as many draws as the chain is long.
    """
    bands = int((factor != 0).sum(0).max())
    rows: deque[tuple[int, State]] = deque(maxlen=max(1, bands - 1))
    now: State = {}
    for round_number, attempt in chain:
        stream = key.stream("server noise", round_number, attempt)
        now = {name: gaussian(stream, tensor) for name, tensor in like.items()}
        t = round_number - 1
        for s, earlier in rows:
            if factor[t, s]:
                for name, tensor in now.items():
                    tensor.sub_(earlier[name], alpha=float(factor[t, s]))
        for tensor in now.values():
            tensor.div_(float(factor[t, t]))
        rows.append((t, now))
    return now


def variance(factor: np.ndarray, chain: Attempts) -> float:
    """Of each entry of g of the last round of a chain: the square of the last row of F^-1, over the chain's rounds."""
    rounds = [round_number - 1 for round_number, _ in chain]
    last = np.zeros(len(rounds))
    last[-1] = 1.0
    row = solve_triangular(factor[np.ix_(rounds, rounds)], last, trans="T", lower=True)
    return float(row @ row)
