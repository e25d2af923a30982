"""Lies of one client in secure sums: false statements about its update.

A lying client sends arbitrary integers. The lies below change the four numbers beside its vector. An honest client
states (weight, examples, examples x loss, norm in units of C).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import BESIDE, Contribution
from fedpeft.privacy.secure_sum.integers import NUMBER_BITS, UNIT, Integers
from fedpeft.privacy.secure_sum.sum import SecureSum

if TYPE_CHECKING:
    from fedpeft.attack.stage import Change

HUGE = 2.0**27
Number = Callable[[float, int], float]
"""Makes a lie from an honest number and the round."""

Stated = Callable[[list[float], int], list[float]]
"""Makes lies from the four honest numbers and the round."""


def lie_after_start(value: float) -> Number:
    """Return a lie that replaces the number from round 1 on."""
    return lambda honest, round_number: value if round_number else honest


def replace_numbers(
    weight: Number | None = None, rows: Number | None = None, losses: Number | None = None, norm: Number | None = None
) -> Stated:
    """Return a lie that replaces some of the numbers; each is a function of (honest value, round)."""

    def lie(honest: list[float], round_number: int) -> list[float]:
        changes = zip(honest, (weight, rows, losses, norm), strict=True)
        return [value if change is None else change(value, round_number) for value, change in changes]

    return lie


def lie_always(value: float) -> Number:
    """Return a lie that replaces the number in every round."""
    return lambda _honest, _round: value


def draw_numbers(honest: list[float], round_number: int) -> list[float]:
    """Return random numbers of all sizes from round 1 on."""
    return np.random.default_rng(round_number).uniform(-HUGE, HUGE, BESIDE).tolist() if round_number else honest


def draw_integers(sent: np.ndarray, bits: int) -> np.ndarray:
    """Return random integers of all sizes, instead of those sent."""
    return np.random.default_rng(len(sent)).integers(0, 2**bits, len(sent)).astype(sent.dtype)


LIES: dict[str, Stated] = {
    "norm: huge": replace_numbers(norm=lie_always(HUGE)),
    "norm: beyond what a number holds": replace_numbers(norm=lie_always(2.0**42)),
    "norm: minus huge": replace_numbers(norm=lie_always(-HUGE)),
    "norm: zero": replace_numbers(norm=lie_always(0.0)),
    "norm: cancels the others' (-1)": replace_numbers(norm=lie_always(-1.0)),
    "norm: as large as believed (8)": replace_numbers(norm=lie_always(8.0)),
    "norm: grows slowly (1.5^round)": replace_numbers(norm=lambda honest, round_number: honest * 1.5**round_number),
    "norm: shrinks slowly (-0.2 a round)": replace_numbers(
        norm=lambda honest, round_number: honest - 0.2 * round_number
    ),
    "norm: alternates, huge and minus huge": replace_numbers(norm=lambda _, round_number: HUGE * (-1) ** round_number),
    "norm: alternates, 8 and -1": replace_numbers(norm=lambda _, round_number: (8.0, -1.0)[round_number % 2]),
    "weight: huge": replace_numbers(weight=lie_after_start(HUGE)),
    "weight: minus huge": replace_numbers(weight=lie_after_start(-HUGE)),
    "weight: zero": replace_numbers(weight=lie_after_start(0.0)),
    "weight: cancels the others'": replace_numbers(weight=lie_after_start(-265.0)),
    "weight: ten times its own": replace_numbers(
        weight=lambda honest, round_number: 10 * honest if round_number else honest
    ),
    "examples: huge": replace_numbers(rows=lie_always(HUGE)),
    "examples: minus huge": replace_numbers(rows=lie_always(-HUGE)),
    "examples: cancel the others'": replace_numbers(rows=lie_always(-265.0)),
    "loss: huge": replace_numbers(losses=lie_always(HUGE)),
    "loss: minus huge": replace_numbers(losses=lie_always(-HUGE)),
    "all numbers: huge": replace_numbers(*[lie_after_start(HUGE)] * BESIDE),
    "all numbers: random": draw_numbers,
}
"""The 22 false statements by name."""

CLAIMS: dict[str, Stated] = {
    "examples: ten times its own, before round 1, too": replace_numbers(
        weight=lambda honest, _: 10 * honest, rows=lambda honest, _: 10 * honest
    ),
}
"""Statements that masks hide, by name; they dilute the mean as a client with that many examples would."""

UPDATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "update: not a number": lambda tensor: tensor * float("nan"),
    "update: infinite": lambda tensor: tensor + float("inf"),
    "update: zero": torch.zeros_like,
    "update: 1e9 times as long": lambda tensor: tensor * 1e9,
}
"""The 4 false updates, by name, that a client sends through its honest software."""

VECTORS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "vector: the largest integers": lambda sent, bits: np.full_like(sent, 2**bits - 1),
    "vector: random integers": lambda sent, bits: draw_integers(sent, bits),
}
"""Integers by name that no honest software sends; the sum overflows."""


def create_lie(kind: str, liar: int, rounds: range) -> Change:
    """Return a replacement of `Contribution.integers` that lies for one client in these rounds (0: before round 1)."""

    def change(honest: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def create_integers(
            given: Contribution,
            told: Announcement,
            secure: SecureSum,
            seed: int,
            round_number: int,
            client: int,
            *secret: Any,
        ) -> np.ndarray:
            if client != liar or round_number not in rounds:
                return honest(given, told, secure, seed, round_number, client, *secret)
            if kind in UPDATES:
                changed = {name: UPDATES[kind](tensor) for name, tensor in given.update.items()}
                return honest(replace(given, update=changed), told, secure, seed, round_number, client, *secret)
            sent = honest(given, told, secure, seed, round_number, client, *secret)
            if kind in VECTORS:
                return VECTORS[kind](sent, told.integers(secure, round_number).bits)
            flat = torch.cat([tensor.ravel() for tensor in given.update.values()]) if given.update else torch.zeros(0)
            norm = float(flat.double().norm()) * given.weight / told.clip
            honestly = [given.weight, float(given.rows), given.rows * given.loss, norm]
            return replace_integers(
                sent, told.integers(secure, round_number), (LIES | CLAIMS)[kind](honestly, round_number)
            )

        return create_integers

    return change


def replace_integers(sent: np.ndarray, grid: Integers, numbers: list[float]) -> np.ndarray:
    """Return the integers with other numbers; the highest digit takes what exceeds the others."""
    sent, places = sent.copy(), list(grid._places)
    digits = sent[grid.size :].reshape(len(places), grid.numbers)
    for i, number in enumerate(numbers):
        shifted = round(number / UNIT) + 2 ** (NUMBER_BITS - 1)
        for place, row in zip(places, digits, strict=True):
            last = place == places[-1]
            row[i] = (shifted >> place) % 2**grid.bits if last else (shifted >> place) & ((1 << grid._digit) - 1)
    return sent
