"""Cells that are numbers, with decimal points or commas: `4,52` has a decimal comma, `1,234` may have one or not."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence

COMMA, POINT = ",", "."

MANY = 20
"""Fewest different words for which a column of words with commas may contain numbers."""

NEARLY_ALL = 0.95
"""Share of rows that must look like numbers."""

_DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", re.ASCII)


def convert_decimal(word: str, decimal: str) -> str:
    """Return a number as Python writes it; other words as they are.

    Args:
        word: a cell.
        decimal: the decimal sign; the other sign separates thousands. Any other text: the word stays as it is.
    """
    if decimal == COMMA:
        if _DECIMAL_COMMA.fullmatch(word):
            return word.replace(".", "").replace(",", ".")
        return word.replace(".", ",") if "." in word else word  # a decimal point is not a number here
    if decimal == POINT and _THOUSANDS.fullmatch(word):
        return word.replace(",", "")
    return word


def is_comma_only(words: Collection[str]) -> bool:
    """Return whether a decimal comma is the only way to read `words`, of which some have commas.

    All must have this form, and at least one must not be a number with separated thousands. Points separate thousands
    beside a comma in the same word, such as `1.234,5`. Alone they may be decimal points.
    """
    has_proof = any("," in word and not _THOUSANDS.fullmatch(word) for word in words)
    return has_proof and all(_DECIMAL_COMMA.fullmatch(word) and ("," in word or "." not in word) for word in words)


def find_decimal_comma_example(words: Sequence[str]) -> str:
    """Return one of words that look like numbers with a decimal comma, and are many different ones; empty: no such."""
    alike = {name: count for name, count in Counter(words).items() if _DECIMAL_COMMA.fullmatch(name)}
    if sum(alike.values()) < NEARLY_ALL * len(words):
        return ""
    held = [name for name in alike if "," in name]
    return held[0] if len(held) >= MANY and not _is_pairs_of_few([name.split(",") for name in held]) else ""


def _is_pairs_of_few(pairs: Sequence[Sequence[str]]) -> bool:
    """Return whether pairs may be two labels each, of a few: each label in either place, and no pair of one label."""
    left, right = ({pair[side] for pair in pairs} for side in (0, 1))
    either = left | right
    return len(either) <= MANY and 2 * len(left & right) >= len(either) and all(a != b for a, b in pairs)


def suggest_decimal(word: str, setting: str) -> str:
    """Return how to write a number with a comma, as a clause; empty: it is not a number.

    Args:
        word: a cell.
        setting: how the user writes `decimal=VALUE`, with VALUE in its place; empty: there is no such setting.
    """
    ways = {
        sign: number
        for sign in (POINT, COMMA)
        if "," in word and (number := convert_decimal(word, sign)) != word and "," not in number
    }
    if not ways:
        return ""
    told = f"; write {', or '.join(ways.values())} instead"
    if setting:
        settings = (f"{setting.replace('VALUE', repr(sign))} for {number}" for sign, number in ways.items())
        told += f", or {' or '.join(settings)}"
    return told


def describe_numbers(words: Sequence[str], decimal: str = "") -> str:
    """Return why words are numbers to predict; empty: they are not, or may be classes."""
    names = set(words)
    numbers = parse_numbers(names, decimal)
    if not all(number.is_integer() for number in numbers):
        return "numbers with fractions"
    return (
        f"{len(names):,} different whole numbers in {len(words):,} rows"
        if numbers and has_mostly_distinct(words)
        else ""
    )


def parse_numbers(words: Collection[str], decimal: str = "") -> list[float]:
    """Return words as finite numbers; empty: not all of them are."""
    try:
        numbers = [float(convert_decimal(word, decimal)) for word in words]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def has_mostly_distinct(words: Sequence[str]) -> bool:
    """Return whether more than half of enough words differ, so that they are hardly classes."""
    return len(words) >= MANY and len(set(words)) > len(words) / 2
