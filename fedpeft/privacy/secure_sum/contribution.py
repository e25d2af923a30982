"""What a client adds to a secure sum, and what the server reads in the sum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch

from fedpeft import seeds
from fedpeft.communication.payload import Shape, count_entries
from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import State
from fedpeft.privacy.secure_sum.announcement import Announcement, signs
from fedpeft.privacy.secure_sum.integers import UNIT, levels
from fedpeft.privacy.secure_sum.sum import SecureSum

BESIDE: Final = 4
"""Numbers in every sum: weights, rows, rows x loss, and norms of the weighted updates, in units of C."""

LARGEST_NORM: Final = 8.0
"""The largest norm that a client states, in units of C: a client that diverges does not speak for all."""

LOSS_ROUNDING: Final = 0.01
"""How far below its least value a mean loss in low precision can lie."""

LARGEST_MEAN: Final = 2.0
"""The largest mean norm that the server believes, in units of C: C grows at most `headroom` times as much a round."""


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
        round_number: int,
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
            vector, statistics = (vector if round_number else statistics), statistics[:0]
        if (len(vector), len(statistics) + BESIDE) != (told.size, told.numbers):
            raise PayloadError(
                f"FP6111 a secure sum of {told.size} entries and {told.numbers} numbers is announced, and the client "
                f"has {len(vector)} and {len(statistics) + BESIDE}"
            )
        norm = float(np.linalg.norm(vector)) / told.clip
        norm = min(norm, LARGEST_NORM) if norm == norm else norm  # what is no number is refused below
        beside = np.array([self.weight, self.rows, self.rows * self.loss, norm])
        if secure.noisy:
            beside = np.array([1.0, 1.0, 0.0, 0.0])
        random = secret or seeds.create_generator(seed, "rounding of a secure sum", round_number, client)
        numbers, turns = np.concatenate([beside, statistics]), signs(seed, round_number, told.size)
        return told.integers(secure, round_number).encode(vector, numbers, turns, random)


@dataclass(frozen=True)
class Weights:
    """What the weights of honest clients can add up to.

    Attributes:
        low, high: bounds of the sum.
        instead: replaces a sum out of bounds; None: nothing can.
        by_rows: whether a client weighs as many as its examples.
        most_rows: the largest possible sum of examples.
    """

    low: float
    high: float
    instead: float | None
    by_rows: bool
    most_rows: float = math.inf

    @classmethod
    def of(cls, clients: int, by_rows: bool, most_rows: float, start: tuple[float, int] | None) -> Weights:
        """Return the bounds for the sum of so many clients.

        Args:
            clients: whose vectors have arrived.
            by_rows: see above.
            most_rows: examples that one client may have.
            start: weights of the sum before round 1, and of how many clients; None: nothing to compare with.
        """
        largest = clients * most_rows
        if not by_rows:
            return cls(clients, clients, clients, False, largest)
        if start is None:
            return cls(clients, largest, None, True, largest)
        weight, before = start
        if clients == before:  # all clients, which have the same examples as before but for restarts
            return cls(0.9 * weight, 1.1 * weight, weight, True, largest)
        return cls(clients, weight if clients < before else largest, weight * clients / before, True, largest)


@dataclass(frozen=True)
class Losses:
    """The mean training losses that honest clients can state, from `low` to `high`."""

    low: float
    high: float


ANY_LOSS: Final = Losses(-math.inf, math.inf)


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
        cls, integers: np.ndarray, clients: int, told: Announcement, secure: SecureSum, seed: int, round_number: int
    ) -> Total:
        """What the sum of so many clients' integers says; `checked` tells what of it to believe."""
        vector, numbers = told.integers(secure, round_number).decode(
            integers, clients, signs(seed, round_number, told.size)
        )
        weight, rows, losses, norm = numbers[:BESIDE].tolist()
        statistics = numbers[BESIDE:] if round_number or not secure.noisy else vector
        return cls(clients, weight, rows, losses / rows if rows else math.nan, norm, vector, statistics)

    def checked(self, possible: Weights | None = None, losses: Losses = ANY_LOSS) -> Total:
        """Return the total without weights, numbers of examples and a loss that honest clients cannot have stated.

        What replaces the loss is not a number.

        Raises:
            PayloadError: the weights are impossible, and nothing can replace them.
        """
        weight, tolerance = self.weight, UNIT * self.clients
        low, high = (0.0, math.inf) if possible is None else (possible.low - tolerance, possible.high + tolerance)
        if not (weight > 0 and low <= weight <= high):
            if possible is None or possible.instead is None:
                raise PayloadError(f"FP6182 the sum is of weight {weight:g}, which no training leads to: a client lies")
            weight = possible.instead
        rows = float(self.clients) if possible is None or not possible.by_rows else weight
        counted = abs(self.rows - weight) <= tolerance if possible is not None and possible.by_rows else self.rows > 0
        if counted and self.rows <= (math.inf if possible is None else possible.most_rows):
            is_possible = losses.low - LOSS_ROUNDING <= self.loss <= losses.high
            return replace(self, weight=weight, loss=self.loss if is_possible else math.nan)
        return replace(self, weight=weight, rows=rows, loss=math.nan)

    def update(self, shapes: Mapping[str, Shape], dtype: torch.dtype, divisor: float = 0.0) -> State:
        """The sum of the updates, divided by their weights or by another `divisor`."""
        return _shaped(self.vector / (divisor or self.weight), shapes, dtype)

    def summed_statistics(self, shapes: Mapping[str, Shape]) -> State:
        """The sums of the statistics, fp64."""
        return _shaped(self.statistics, {name: shapes[name] for name in sorted(shapes)}, torch.float64)

    def next_clip(self, told: Announcement, secure: SecureSum, growth: float) -> float:
        """Return C of the next sum, where steps are `growth` times as long.

        C follows the mean norm that clients state, as far as the sum v of their n clipped updates can confirm it:

            |v| / (n C) <= mean <= 2 |v| / (sqrt(n) C)

        - The first bound is the triangle inequality: whoever undercuts it lies, and C stays.
        - The second bound leaves independent updates twice their norm.
        - C does not grow by what one clipped update explains: from |v| = 0.9 C on, |v| - C replaces |v| above.
        - C does not shrink while |v| >= 0.9 sqrt(n - 1) C: that long is the sum if all updates are clipped.

        Rounding lengthens v by at most `slack`.
        """
        if secure.noisy:
            return told.clip
        n = self.clients
        slack = 4 * math.sqrt(n) / levels(told.clients, secure.bits)
        length = min(float(np.linalg.norm(self.vector)) / told.clip, n)
        stated, kept = self.norm / n, 1 / secure.headroom  # with the mean `kept`, C stays
        if stated < (length - slack) / n or length >= 0.9 * math.sqrt(n - 1):
            stated = max(stated, kept)
        high = 2 * (length + slack) / math.sqrt(n)
        if length >= 0.9:
            high = max(high - 2 / math.sqrt(n), kept)
        mean = min(stated, high, LARGEST_MEAN) if length else 0.0
        if mean <= 0:
            return told.clip * growth / 2
        return secure.headroom * told.clip * mean * growth


def entries(shapes: Mapping[str, Shape]) -> int:
    """Of all tensors together."""
    return sum(count_entries(shape) for shape in shapes.values())


def _flat(tensors: Iterable[torch.Tensor]) -> np.ndarray:
    parts = [tensor.detach().cpu().double().numpy().ravel() for tensor in tensors]
    return np.concatenate(parts) if parts else np.zeros(0)


def _shaped(vector: np.ndarray, shapes: Mapping[str, Shape], dtype: torch.dtype) -> State:
    state, at = {}, 0
    for name, shape in shapes.items():
        state[name] = torch.from_numpy(vector[at : at + count_entries(shape)].reshape(shape).copy()).to(dtype)
        at += count_entries(shape)
    return state
