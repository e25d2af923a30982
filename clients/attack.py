"""Clients that try to spoil a federation, to measure what robust rules are worth. For simulations only.

An attack acts at the places where a hostile client could: on the labels it trains with, on the update it hands in, and
on the number of rows it claims. Which clients are hostile is drawn from the run's seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fedpeft import seeds
from fedpeft.families import ATTACKS as ATTACKS
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class Attack:
    """One attack; by default an attacker behaves well. Subclasses are frozen dataclasses."""

    fraction: float = setting(0.1, "share of the clients that are hostile, rounded", low=0, high=1)

    changes_labels: ClassVar[bool] = False
    """Whether the attackers' training labels are changed."""

    needs_factors: ClassVar[bool] = False
    """Whether it is about LoRA's factors, and does nothing to what has none."""

    def attackers(self, clients: int, seed: int) -> frozenset[int]:
        """The ids of the hostile clients."""
        order = seeds.create_generator(seed, "attackers").permutation(clients)
        return frozenset(int(c) for c in order[: round(self.fraction * clients)])

    def relabel(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """The labels that an attacker trains with, instead of its own (n,)."""
        return labels

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """What an attacker hands in, instead of its delta to what it `received`."""
        return delta

    def rows(self, rows: int) -> int:
        """How many rows an attacker says it has."""
        return rows
