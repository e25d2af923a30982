"""What a client adds to a secure sum, and what the server reads in the sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from fedpeft import seeds
from fedpeft.communication.payload import Shape, size
from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import State
from fedpeft.privacy.secure_sum.announcement import Announcement, signs
from fedpeft.privacy.secure_sum.sum import SecureSum

BESIDE: Final = 4
"""Numbers in every sum: weights, rows, rows x loss, and norms of the weighted updates, in units of C."""


@dataclass(frozen=True)
class Contribution:
    """One client's.

    Attributes:
        weight: of its update, above 0.
        rows, loss: that it has trained on, and their mean loss.
        update: in the order of the layout; empty: before round 1.
        statistics: for the head's start; empty: in rounds.
    """

    weight: float
    rows: int
    loss: float = 0.0
    update: State = field(default_factory=dict)
    statistics: State = field(default_factory=dict)

    def integers(
        self,
        told: Announcement,
        secure: SecureSum,
        seed: int,
        round: int,
        client: int,
        secret: np.random.Generator | None = None,
    ) -> np.ndarray:
        """As they are masked, (length,).

        `secret`: what rounding and the client's share of noise are drawn from; None: there is no noise.

        Raises:
            PayloadError: something is not finite, or the server has announced something else.
        """
        vector = _flat(self.update.values()) * self.weight
        statistics = _flat(self.statistics[name] for name in sorted(self.statistics))
        if secure.noisy:  # which is in vectors, not in numbers
            vector, statistics = (vector if round else statistics), statistics[:0]
        if (len(vector), len(statistics) + BESIDE) != (told.size, told.numbers):
            raise PayloadError(
                f"a secure sum of {told.size} entries and {told.numbers} numbers is announced, and the client has "
                f"{len(vector)} and {len(statistics) + BESIDE}"
            )
        norm = float(np.linalg.norm(vector)) / told.clip
        beside = np.array([self.weight, self.rows, self.rows * self.loss, norm])
        if secure.noisy:
            beside = np.array([1.0, 1.0, 0.0, 0.0])
        random = secret or seeds.generator(seed, "rounding of a secure sum", round, client)
        numbers, turns = np.concatenate([beside, statistics]), signs(seed, round, told.size)
        return told.integers(secure, round).encode(vector, numbers, turns, random)


@dataclass(frozen=True)
class Total:
    """Of all contributions.

    Attributes:
        clients: how many there are.
        weight, rows: sums.
        loss: the mean over rows.
        norm: the sum of the norms of the weighted updates, in units of C.
        vector: the sum of the weighted updates.
        statistics: their sum.
    """

    clients: int
    weight: float
    rows: float
    loss: float
    norm: float
    vector: np.ndarray
    statistics: np.ndarray

    @classmethod
    def of(
        cls, integers: np.ndarray, clients: int, told: Announcement, secure: SecureSum, seed: int, round: int
    ) -> Total:
        """What the sum of so many clients' integers says.

        Raises:
            PayloadError: what no clients of good faith can have led to: weights or rows that are not above 0.
        """
        vector, numbers = told.integers(secure, round).decode(integers, clients, signs(seed, round, told.size))
        weight, rows, losses, norm = numbers[:BESIDE].tolist()
        if not (weight > 0 and rows > 0):
            raise PayloadError(f"the sum is of weight {weight:g} and {rows:g} rows, which no training leads to")
        statistics = numbers[BESIDE:] if round or not secure.noisy else vector
        return cls(clients, weight, rows, losses / rows, norm, vector, statistics)

    def update(self, shapes: Mapping[str, Shape], dtype: torch.dtype, divisor: float = 0.0) -> State:
        """The sum of the updates, divided by their weights or by another `divisor`."""
        return _shaped(self.vector / (divisor or self.weight), shapes, dtype)

    def summed_statistics(self, shapes: Mapping[str, Shape]) -> State:
        """The sums of the statistics, fp64."""
        return _shaped(self.statistics, {name: shapes[name] for name in sorted(shapes)}, torch.float64)

    def next_clip(self, told: Announcement, secure: SecureSum, growth: float) -> float:
        """C of the next sum, where steps are `growth` times as long."""
        if secure.noisy:
            return told.clip
        mean = self.norm / self.clients * growth
        return secure.headroom * told.clip * mean if mean > 0 else told.clip


def entries(shapes: Mapping[str, Shape]) -> int:
    """Of all tensors together."""
    return sum(size(shape) for shape in shapes.values())


def _flat(tensors: Iterable[torch.Tensor]) -> np.ndarray:
    parts = [tensor.detach().cpu().double().numpy().ravel() for tensor in tensors]
    return np.concatenate(parts) if parts else np.zeros(0)


def _shaped(vector: np.ndarray, shapes: Mapping[str, Shape], dtype: torch.dtype) -> State:
    state, at = {}, 0
    for name, shape in shapes.items():
        state[name] = torch.from_numpy(vector[at : at + size(shape)].reshape(shape).copy()).to(dtype)
        at += size(shape)
    return state
