"""Hostile clients, which measure how much a robust strategy is worth. For simulations only.

An attack acts where a hostile client could: on the examples that it trains with, on the update that it hands in, and on
the number of examples that it claims. The run's seed decides which clients are hostile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch

from fedpeft.machine import seeds
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class Attack:
    """One attack; by default an attacker behaves well. Subclasses are frozen dataclasses."""

    fraction: float = setting(0.1, "share of the clients that are hostile, rounded", low=0, high=1)

    needs_factors: ClassVar[bool] = False
    """Whether the attack needs LoRA factors and leaves all other tensors alone."""

    def attackers(self, clients: int, seed: int) -> frozenset[int]:
        """Return the ids of the hostile clients: `fraction` of `clients`, drawn from `seed`."""
        order = seeds.create_generator(seed, "attackers").permutation(clients)
        return frozenset(int(c) for c in order[: round(self.fraction * clients)])

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """Return what an attacker hands in, in place of its `delta` to the `received` state."""
        return delta


@runtime_checkable
class ChangesLabels(Protocol):
    """Attackers train with other labels than their own."""

    def relabel(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """Return the labels (n,) that an attacker trains with in place of its own."""


@runtime_checkable
class PlantsTrigger(Protocol):
    """Attackers train on some of their examples with a trigger, and label these with a target class."""

    @property
    def target(self) -> int:
        """The class that the trigger leads to, from 0."""

    @property
    def share(self) -> float:
        """Share of an attacker's examples of other classes that get the trigger, above 0 and at most 1."""

    def plant(self, inputs: Sequence[str] | np.ndarray) -> Sequence[str] | np.ndarray:
        """Return the inputs with the trigger: texts, or images uint8 (rows, height, width) with or without colors."""


@runtime_checkable
class ClaimsRows(Protocol):
    """Attackers claim another number of examples than they have."""

    def rows(self, rows: int) -> int:
        """Return the number of examples that an attacker claims, given its true number."""
