"""The values that a search may choose from: numbers of a range, or a list of values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpeft.errors import ConfigError
from fedpeft.parts import suggest_legal

if TYPE_CHECKING:
    from optuna.trial import Trial

KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; integers if both ends are integers.

    Attributes:
        low, high: the smallest and the largest value.
        log: whether the logarithm is drawn uniformly.
        step: distance between values; None: 1 for integers, otherwise continuous.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def ends(self) -> tuple[Any, ...]:
        """The two ends; if both are legal, all values between them are."""
        return self.low, self.high

    @property
    def ends_on_step(self) -> bool:
        """Whether steps lead from `low` to `high`, and from integer to integer; true without a step."""
        if self.step is None:
            return True
        if self.step <= 0 or (isinstance(self.low, int) and not isinstance(self.step, int)):
            return False
        steps = (self.high - self.low) / self.step
        return 1 <= steps < math.inf and abs(steps - round(steps)) <= 1e-9

    def suggest(self, trial: Trial, name: str) -> Any:
        """Return optuna's suggestion of `name` for the trial."""
        if isinstance(self.low, int):
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def __str__(self) -> str:
        """Return the range as readable text."""
        words = [f"{self.low:g} to {self.high:g}"]
        words += [f"in steps of {self.step:g}"] if self.step else []
        return ", ".join([*words, *(["logarithmic"] if self.log else [])])


@dataclass(frozen=True)
class Choices:
    """A choice of one of several texts, numbers or truth values."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    def suggest(self, trial: Trial, name: str) -> Any:
        """Return optuna's suggestion of `name` for the trial."""
        return trial.suggest_categorical(name, self.values)

    def __str__(self) -> str:
        """Return the values as readable text."""
        return " | ".join(str(value) for value in self.values)


Searched = Range | Choices

Draw = Callable[[str, Searched], Any]
"""A function that draws the value of a name from its range or choices."""


def parse_searched(where: str, given: Any) -> Searched:
    """Parse a value of a search file's table [search]; `where` names it in error messages.

    Raises:
        ConfigError: it is neither a list nor a range, or it offers fewer than two values.
    """
    if isinstance(given, list):
        return parse_choices(where, given)
    if isinstance(given, dict):
        return _parse_range(where, given)
    raise ConfigError(
        f"FP1454 {where} must be a list of values or {{low = ..., high = ...}}, got {given!r}; a fixed value "
        "belongs in [base]"
    )


def parse_choices(where: str, given: list[Any]) -> Choices:
    """Parse a list of values.

    Raises:
        ConfigError: the list has fewer than two values, a duplicate, or a nested list or table.
    """
    if any(not isinstance(value, str | int | float) for value in given):
        raise ConfigError(f"FP1455 {where} must contain texts, numbers or truth values, got {given!r:.100}")
    if len(given) < 2:
        raise ConfigError(
            f"FP1456 {where} offers no choice: it has {len(given)} values, and a search needs at least two"
        )
    if len({(type(value), value) for value in given}) < len(given):
        raise ConfigError(f"FP1457 {where} contains a value twice; remove one: {given!r:.100}")
    return Choices(tuple(given))


def _is_finite(number: Any) -> bool:
    """Return whether a value is a number within the range of floats."""
    try:
        return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    except OverflowError:  # an integer with more than 308 digits
        return False


def _parse_range(where: str, given: Mapping[str, Any]) -> Range:
    for key in given:
        if key not in KEYS:
            raise ConfigError(f"FP1424 {where} has an unknown key {key!r}; {suggest_legal(key, KEYS)}")
    low, high, log, step = given.get("low"), given.get("high"), given.get("log", False), given.get("step")
    if not all(map(_is_finite, (low, high, given.get("step", 0)))):
        raise ConfigError(
            f"FP1458 {where} needs numbers for low, high and, if it is given, step, all below 1e308, got "
            f"{dict(given)!r:.100}"
        )
    if not isinstance(log, bool):
        raise ConfigError(f"FP1459 {where}: log is true or false, got {log!r}")
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if low >= high:
        raise ConfigError(f"FP1460 {where} is an empty range: low = {low} must be below high = {high}")
    if not _is_finite(high - low):
        raise ConfigError(f"FP1461 {where} is too wide: from {low:g} to {high:g} must be less than 1e308")
    if log and (low <= 0 or step is not None):
        raise ConfigError(f"FP1462 {where}: a logarithmic range needs a low above 0 and no step, got {dict(given)!r}")
    if not (isinstance(low, int) and isinstance(high, int)):
        low, high = float(low), float(high)
    numbers = Range(low, high, log, step)
    if not numbers.ends_on_step:
        raise ConfigError(f"FP1463 {where}: steps of {step} do not lead from {low} to {high}")
    return numbers
