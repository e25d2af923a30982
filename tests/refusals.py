"""Checks of errors by their code and the values in them: the golden list holds the sentences."""

from __future__ import annotations

import re

import pytest

from fedpeft.errors import FedpeftError


def pattern_of(code: str, *values: object, start: str = r"\b") -> re.Pattern[str]:
    """Return a pattern: the code and after it the values in their order, each on its own."""
    return re.compile(rf"{start}{code}\b" + "".join(f".*?{_alone(str(value))}" for value in values), re.DOTALL)


def _alone(value: str) -> str:
    """Return a regular expression for a value that is no part of a longer word or number, across wrapped lines."""
    before = r"(?<![\w-])" if re.match(r"[\w-]", value) else ""
    after = r"(?!\w|\.\d)" if re.search(r"\w$", value) else ""
    return before + r"\s+".join(map(re.escape, value.split())) + after


def refuses(code: str, *values: object):
    """Return `pytest.raises` for an error with this code, of the code's class, that names the values in this order."""
    family = next(c for c in FedpeftError.__subclasses__() if c.uncoded[: -len("000")] == code[: -len("000")])
    return pytest.raises(family, match=pattern_of(code, *values, start="^"))


def has_error(text: str, code: str, *values: object) -> bool:
    """Whether a text, such as what a command printed, has the code and after it the values in this order."""
    return pattern_of(code, *values).search(text) is not None
