"""Generated arithmetic with exactly one right answer: synthetic instruction data; each operation and size is an owner.

A question is "What is 23 + 45?", and its answer is the number alone, "68". The operations are addition, subtraction
(never below zero), multiplication and division (without remainder). Both numbers of a question have equally many
digits; for division these are the divisor and the quotient. An owner has one operation with one number of digits, so
clients differ in what they ask and in how hard it is. Test questions have the same types and do not occur in the
training examples. Nothing is fetched, and no license applies.

Sums and products may occur in both with exchanged numbers. By default, this holds for 3 of 48 test questions: 7 + 1,
4 + 8 and 5 * 7. They stay, because the results in `docs/data-benchmarks.md` were measured with them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.conversations import pack_conversation
from fedpeft.data.rows import Dataset, Rows
from fedpeft.errors import DataError
from fedpeft.parts import setting

ORDER = "Answer with the number alone."
"""System message before each question."""

OPERATIONS: dict[str, Callable[[int, int], tuple[str, int]]] = {
    "addition": lambda a, b: (f"{a} + {b}", a + b),
    "division": lambda a, b: (f"{a * b} / {b}", a),
    "multiplication": lambda a, b: (f"{a} * {b}", a * b),
    "subtraction": lambda a, b: (f"{max(a, b)} - {min(a, b)}", abs(a - b)),
}
"""The term and the result of two numbers, by operation."""


@dataclass(frozen=True)
class Arithmetic:
    """Synthetic arithmetic with one right answer for each question."""

    digits: int = setting(2, "most digits of a number; each operation has an owner for 1, 2, ... digits", low=1, high=6)
    rows: int = setting(30, "training examples of each owner", low=2, high=100_000)
    test_rows: int = setting(6, "test examples of each owner", low=1, high=10_000)
    seed: int = setting(0, "seed of the examples; not the run's seed", low=0)

    suited_partition: ClassVar[str] = "natural"

    def load(self) -> Dataset:
        """Return examples of one question and its answer each, owner by owner.

        Raises:
            DataError: an owner's numbers give fewer different questions than were requested.
        """
        train: list[tuple[str, str]] = []
        test: list[tuple[str, str]] = []
        for operation in OPERATIONS:
            for digits in range(1, self.digits + 1):
                rows = self._draw_questions(operation, digits)
                train += rows[: self.rows]
                test += rows[self.rows :]
        return Dataset(
            name="arithmetic",
            kind="text",
            task="instruction",
            train=Rows([text for text, _ in train], None, np.array([owner for _, owner in train])),
            test=Rows([text for text, _ in test], None, np.array([owner for _, owner in test])),
            label_names=None,
            default_model="smollm2",
            notes=("synthetic: the questions are generated",),
        )

    def _draw_questions(self, operation: str, digits: int) -> list[tuple[str, str]]:
        """Return `rows` + `test_rows` different questions of an owner, packed, with the owner's name."""
        owner, wanted = f"{operation}, {digits} digit{'s' * (digits > 1)}", self.rows + self.test_rows
        least, most = 10 ** (digits - 1), 10**digits - 1
        numbers = most - least + 1
        different = numbers * (numbers + 1) // 2 if operation == "subtraction" else numbers**2
        if wanted > different:
            raise DataError(
                f"FP3463 {owner} has {different} different questions, too few for rows={self.rows} and "
                f"test_rows={self.test_rows}; give fewer of both"
            )
        generator = random.Random(f"arithmetic {self.seed} {owner}")
        results: dict[str, int] = {}
        while len(results) < wanted:
            term, result = OPERATIONS[operation](generator.randint(least, most), generator.randint(least, most))
            results[term] = result
        return [(_pack_question(term, result), owner) for term, result in results.items()]


def _pack_question(term: str, result: int) -> str:
    roles = (("system", ORDER), ("user", f"What is {term}?"), ("assistant", str(result)))
    return pack_conversation([{"role": role, "content": content} for role, content in roles], term)


part = Arithmetic
