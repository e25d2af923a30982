"""pass@1: 1 if the code in the model's first answer passes the question's tests (Chen et al., arXiv 2107.03374).

Answers are greedy, so there is one answer per question. The code runs in isolation (`fedpeft.machine.sandbox`), and
only with --run-code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.errors import ConfigError
from fedpeft.machine.sandbox import Limits
from fedpeft.models.answers.code_tests import passes_tests
from fedpeft.models.answers.metric import Metric, describe_forbidden_code
from fedpeft.parts import setting


@dataclass(frozen=True)
class PassAt1(Metric):
    """Whether the answer's code passes the tests."""

    seconds: float = setting(10.0, "most seconds of a question's tests", above=0, high=600)
    memory_mb: int = setting(512, "most memory of a process, in MB", low=64, high=64_000)

    needs_tests: ClassVar[bool] = True

    def score(self, said: str, right: Sequence[str]) -> float:
        """Refuse to score without tests.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(describe_forbidden_code("pass_at_1"))

    def score_tests(self, asked: str, said: str, right: Sequence[str], tests: str) -> float:
        """Return 1 if all tests pass, and 0 otherwise."""
        return float(passes_tests(asked, said, tests, Limits(self.seconds, self.memory_mb)))


part = PassAt1
