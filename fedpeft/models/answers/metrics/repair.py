"""Repair of a defective function: 1 if the original returns, or another function that passes the tests.

The first function of the answer is compared with the right answer as a syntax tree, so spaces and comments do not
matter. With --run-code, a function that differs counts, too, if it passes the question's tests. Tests count only if the
right answer passes them, and the defective function in the question does not. Metric of this project (own rule).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.machine.sandbox import Limits
from fedpeft.models.answers.code_tests import find_first_function, passes_tests
from fedpeft.models.answers.metric import Metric
from fedpeft.parts import setting


@dataclass(frozen=True)
class Repair(Metric):
    """Whether the answer's first function is the original, or passes its tests."""

    seconds: float = setting(10.0, "most seconds of a question's tests", above=0, high=600)
    memory_mb: int = setting(512, "most memory of a process, in MB", low=64, high=64_000)

    needs_tests: ClassVar[bool] = False

    def score(self, said: str, right: Sequence[str]) -> float:
        """Return 1 if the first function equals that of a right answer as a syntax tree, and 0 otherwise."""
        function = find_first_function(said)
        return float(function is not None and function in map(find_first_function, right))

    def score_tests(self, asked: str, said: str, right: Sequence[str], tests: str) -> float:
        """Return 1 if the first function equals a right answer, or passes tests that tell right from wrong."""
        if self.score(said, right) or not tests:
            return self.score(said, right)
        limits = Limits(self.seconds, self.memory_mb)
        return float(
            passes_tests("", said, tests, limits)
            and passes_tests("", right[0], tests, limits)
            and not passes_tests("", asked, tests, limits)
        )


part = Repair
