"""Combinations of parts: all of them for the slow tier, a few for the fast one.

The rule of the fast tier: combination number k takes value number k of each list, and a shorter list starts again. So
there are as many combinations as the longest list has values, and each value appears. With two executors, they
alternate. If a combination is refused by the product, the next legal value takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest


def cover(*lists: Sequence[str]) -> list[tuple[str, ...]]:
    """Return few combinations in which each value of each list appears."""
    return [tuple(values[k % len(values)] for values in lists) for k in range(max(map(len, lists)))]


def make_pairs(first: Sequence[str], second: Sequence[str], is_legal: Callable[[str, str], bool]) -> list[object]:
    """Return all legal pairs for `parametrize`: one of each first value is fast, the others are slow."""
    params = []
    for k, one in enumerate(first):
        legal = [other for other in (*second[k % len(second) :], *second[: k % len(second)]) if is_legal(one, other)]
        marks = [pytest.mark.fast, *[pytest.mark.slow] * (len(legal) - 1)]
        params += [pytest.param(one, other, marks=mark) for other, mark in zip(legal, marks, strict=True)]
    return params
