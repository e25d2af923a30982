"""A client's contribution to a secure sum, and the server's reading of the sum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from fedpeft.communication.payload import Shape, count_entries
from fedpeft.errors import PayloadError
from fedpeft.machine import seeds
from fedpeft.peft.adapter import State
from fedpeft.privacy.secure_sum.announcement import Announcement, signs
from fedpeft.privacy.secure_sum.integers import UNIT, levels

if TYPE_CHECKING:
    from fedpeft.privacy.secure_sum.sum import SecureSum

BESIDE: Final = 4
"""Numbers in every sum: weights, examples, examples x loss, and norms of the weighted updates, in units of C."""

LARGEST_NORM: Final = 8.0
"""The largest norm that a client states, in units of C, so that a diverging client does not decide the mean."""

LOSS_ROUNDING: Final = 0.01
"""The largest error by which a mean loss in low precision can be below its least value."""

LARGEST_MEAN: Final = 2.0
"""The largest mean norm that the server accepts, in units of C: C grows at most by this times `headroom` a round."""


@dataclass(frozen=True)
class Contribution:
    """The contribution of one client.

    Attributes:
        weight: weight of its update, above 0.
        rows: number of examples that it has trained on.
        loss: mean loss of these examples.
        update: the update, in the order of the layout; empty before round 1.
        statistics: statistics for the head's start; empty in rounds.
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
        """Return the integers to mask, (length,).

        Args:
            told: the announcement of the sum.
            secure: the settings of the sum.
            seed: seed of the run.
            round_number: the round; 0: before round 1.
            client: id of the client.
            secret: source of the rounding and of the client's share of noise; None: there is no noise.

        Raises:
            PayloadError: a value is not finite, or the server has announced other sizes.
        """
        vector = _flatten(self.update.values()) * self.weight
        statistics = _flatten(self.statistics[name] for name in sorted(self.statistics))
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
    """The possible sums of honest clients' weights.

    Attributes:
        low: the least possible sum.
        high: the largest possible sum.
        instead: the replacement for a sum out of bounds; None: there is none.
        by_rows: whether a client's weight is its number of examples.
        most_rows: the largest possible sum of examples.
    """

    low: float
    high: float
    instead: float | None
    by_rows: bool
    most_rows: float = math.inf

    @classmethod
    def of(cls, clients: int, by_rows: bool, most_rows: float, start: tuple[float, int] | None) -> Weights:
        """Return the bounds for the sum of `clients` clients.

        Args:
            clients: number of clients whose vectors have arrived.
            by_rows: whether a client's weight is its number of examples.
            most_rows: the most examples that one client may have.
            start: the weights of the sum before round 1, and its number of clients; None: there is nothing to compare
                with.
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
    """The sum of all contributions.

    Attributes:
        clients: number of clients.
        weight: sum of the weights.
        rows: sum of the numbers of examples.
        loss: mean loss over the examples.
        norm: sum of the norms of the weighted updates, in units of C.
        vector: sum of the weighted updates.
        statistics: sum of the statistics.
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
        """Decode the sum of `clients` clients' integers.

        `discard_impossible` then removes what honest clients can't have sent.

        Args:
            integers: the sum, (length,).
            clients: number of clients whose integers it contains.
            told: the announcement of the sum.
            secure: the settings of the sum.
            seed: seed of the run.
            round_number: the round; 0: before round 1.
        """
        vector, numbers = told.integers(secure, round_number).decode(
            integers, clients, signs(seed, round_number, told.size)
        )
        weight, rows, losses, norm = numbers[:BESIDE].tolist()
        statistics = numbers[BESIDE:] if round_number or not secure.noisy else vector
        return cls(clients, weight, rows, losses / rows if rows else math.nan, norm, vector, statistics)

    def discard_impossible(self, possible: Weights | None = None, losses: Losses = ANY_LOSS) -> Total:
        """Return the total without weights, numbers of examples and a loss that honest clients can't have stated.

        An impossible loss becomes NaN.

        Raises:
            PayloadError: the weights are impossible, and nothing can replace them.
        """
        weight, tolerance = self.weight, UNIT * self.clients
        low, high = (0.0, math.inf) if possible is None else (possible.low - tolerance, possible.high + tolerance)
        if not (weight > 0 and low <= weight <= high):
            if possible is None or possible.instead is None:
                raise PayloadError(
                    f"FP6182 the sum has weight {weight:g}, which no honest training can produce: a client lies"
                )
            weight = possible.instead
        rows = float(self.clients) if possible is None or not possible.by_rows else weight
        counted = abs(self.rows - weight) <= tolerance if possible is not None and possible.by_rows else self.rows > 0
        if counted and self.rows <= (math.inf if possible is None else possible.most_rows):
            is_possible = losses.low - LOSS_ROUNDING <= self.loss <= losses.high
            return replace(self, weight=weight, loss=self.loss if is_possible else math.nan)
        return replace(self, weight=weight, rows=rows, loss=math.nan)

    def update(self, shapes: Mapping[str, Shape], dtype: torch.dtype, divisor: float = 0.0) -> State:
        """Return the sum of the updates, divided by their weights or by another `divisor`."""
        return _split_vector(self.vector / (divisor or self.weight), shapes, dtype)

    def summed_statistics(self, shapes: Mapping[str, Shape]) -> State:
        """Return the sums of the statistics, fp64."""
        return _split_vector(self.statistics, {name: shapes[name] for name in sorted(shapes)}, torch.float64)

    def next_clip(self, told: Announcement, secure: SecureSum, growth: float) -> float:
        """Return C of the next sum, whose steps are `growth` times as long.

        C follows the mean norm that clients state, as far as the sum v of their n clipped updates can confirm it:

            |v| / (n C) <= mean <= 2 |v| / (sqrt(n) C)

        - The first bound is the triangle inequality: a smaller mean is a lie, and C stays.
        - The second bound allows independent updates twice their norm.
        - One clipped update may explain growth, which does not count: from |v| = 0.9 C on, |v| - C replaces |v| above.
        - C does not shrink while |v| >= 0.9 sqrt(n - 1) C, the length of the sum if all updates are clipped.

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


def count_tensor_entries(shapes: Mapping[str, Shape]) -> int:
    """Return the number of entries of all tensors together."""
    return sum(count_entries(shape) for shape in shapes.values())


def _flatten(tensors: Iterable[torch.Tensor]) -> np.ndarray:
    parts = [tensor.detach().cpu().double().numpy().ravel() for tensor in tensors]
    return np.concatenate(parts) if parts else np.zeros(0)


def _split_vector(vector: np.ndarray, shapes: Mapping[str, Shape], dtype: torch.dtype) -> State:
    state, at = {}, 0
    for name, shape in shapes.items():
        state[name] = torch.from_numpy(vector[at : at + count_entries(shape)].reshape(shape).copy()).to(dtype)
        at += count_entries(shape)
    return state
