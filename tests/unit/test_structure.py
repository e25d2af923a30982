"""The structure stays as simple as it is: limits on the measures of .ci/structure.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LIMITS = {
    "names directly below fedpeft/": 30,
    "longest import chain": 20,
    "round loop: `x.y is None`": 1,
    "round loop: parameters of Server": 8,
    "base-class methods with one overrider": 15,
    "functions with complexity above 15": 0,
    "nested conditional expressions": 0,
    "functions named by one participle": 6,
}
"""The most of each measure; lower a limit when a measure falls."""


@pytest.fixture(scope="module")
def structure():
    spec = importlib.util.spec_from_file_location("structure", ROOT / ".ci" / "structure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def code(structure):
    return structure.Code(ROOT)


@pytest.mark.parametrize("measure", LIMITS)
def test_a_measure_stays_within_its_limit(structure, code, measure):
    found = structure.ROWS[measure](code)
    places = structure.LISTS[measure](code) if measure in structure.LISTS else ""
    assert found <= LIMITS[measure], places
