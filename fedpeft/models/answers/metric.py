"""Interface of metrics, which compare answers with the right ones; values are 0 to 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from fedpeft.errors import ConfigError
from fedpeft.machine.sandbox import check_isolation
from fedpeft.parts.families import METRICS
from fedpeft.parts.spec import split_outside_parentheses


class Metric(ABC):
    """A metric. Subclasses are frozen dataclasses; their fields are the user's settings."""

    @abstractmethod
    def score(self, said: str, right: Sequence[str]) -> float:
        """Return a score from 0 to 1, for the most similar of the `right` answers (at least one)."""


@runtime_checkable
class ScoresTogether(Protocol):
    """The metric's score of several answers is not the mean of their scores."""

    def score_all(self, said: Sequence[str], right: Sequence[Sequence[str]]) -> float:
        """Return the score of all answers (at least one) together, 0 to 1."""
        ...


@runtime_checkable
class NeedsLibrary(Protocol):
    """The metric needs a library that may be missing."""

    def check(self) -> None:
        """Check that the metric can be used.

        Raises:
            AssetError: a library is missing.
        """


@runtime_checkable
class RunsTests(Protocol):
    """The metric runs a question's tests on the code in an answer, if the user allows that.

    Attributes:
        needs_tests: whether the metric means nothing without tests.
    """

    needs_tests: ClassVar[bool]

    def score_tests(self, asked: str, said: str, right: Sequence[str], tests: str) -> float:
        """Return a score from 0 to 1, with code run in isolation.

        Args:
            asked: the question.
            said: the answer.
            right: the right answers, at least one.
            tests: the tests, a Python program; empty: there are none.

        Raises:
            RunError: code could not be isolated.
        """
        ...


def describe_forbidden_code(name: str) -> str:
    """Return the sentence for a metric that needs to run code without the user's permission."""
    return (
        f"FP1682 {name} runs code that a model wrote; add --run-code to fedpeft evaluate to run it in "
        "isolation, or leave this metric out"
    )


def check_run_code(metrics: Mapping[str, Metric], run_code: bool) -> None:
    """Check that code may and can be run, if a metric needs it.

    Raises:
        ConfigError: a metric needs it without permission, no metric needs it, or this machine can't isolate it.
    """
    for name, metric in metrics.items():
        if isinstance(metric, RunsTests) and metric.needs_tests and not run_code:
            raise ConfigError(describe_forbidden_code(name))
    if run_code and not any(isinstance(metric, RunsTests) for metric in metrics.values()):
        raise ConfigError(
            f"FP1683 --run-code needs a metric that runs tests, but --metrics is {', '.join(metrics)}; add pass_at_1 "
            "or repair, or leave --run-code out"
        )
    if run_code:
        check_isolation()


def parse_metrics(text: str) -> dict[str, Metric]:
    """Return the metrics in `text`, joined by ",", by their specifications, after a check of their libraries.

    Raises:
        ConfigError: a metric does not exist, or `text` is empty.
        AssetError: a library is missing.
    """
    texts = [part.strip() for part in split_outside_parentheses(text, ",") if part.strip()]
    found = {part: METRICS.build(part) for part in texts}
    for metric in found.values():
        if isinstance(metric, NeedsLibrary):
            metric.check()
    if not found:
        raise ConfigError(f"FP1033 --metrics is empty; legal: {', '.join(METRICS.names)}")
    return found
