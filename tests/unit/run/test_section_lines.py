"""Sections of hooks and measurements, as lines of the console, a report and a model card."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from fedpeft.wiring.measurements import Findings, parse_measure, trust_lines
from fedpeft.wiring.section_lines import compute_section, section_lines


def test_each_number_text_and_truth_value_has_a_line():
    section = {"seconds": 61.23456789, "is_spent": True, "rounds": 3, "why": "time", "absent": None, "each": [1, 2]}
    assert section_lines({"budget": section}) == {
        "budget: seconds": "61.23",
        "budget: is spent": "yes",
        "budget: rounds": "3",
        "budget: why": "time",
        "budget: absent": "unknown",
    }
    assert section_lines(None) == {}


def test_a_measurement_whose_plugin_is_absent_has_lines_all_the_same():
    assert trust_lines({"trust": {"mine": {"number": 2}}}) == {"mine: number": "2"}


@dataclass(frozen=True)
class ScoredAt:
    """The part of a scored run that `Findings` reads."""

    kept_round: int | None
    begun: object = None


def compute_sections(monkeypatch, kept_round):
    measured = parse_measure("calibration + ensemble")
    for part in measured.parts:
        monkeypatch.setattr(type(part), "compute", lambda *_: {"error": 0.1})
    findings = Findings(SimpleNamespace(measured=measured), {}, pytest.fail)
    findings.compute(ScoredAt(kept_round))
    return findings.sections


def test_sections_of_the_kept_state_state_its_round(monkeypatch):
    assert compute_sections(monkeypatch, 3) == {
        "calibration": {"error": 0.1, "kept_round": 3},
        "ensemble": {"error": 0.1},  # of the last states, whichever is kept
    }


def test_the_first_line_names_what_describes_the_untrained_start(monkeypatch):
    sections = {"calibration": {"kept_round": 0}, "mine": {"kept_round": 0}}
    lines = trust_lines({"trust": sections})
    assert next(iter(lines)) == "measured state"
    assert "start" in lines["measured state"]
    assert "calibration" in lines["measured state"]
    assert "mine" not in lines["measured state"]
    assert "measured state" not in trust_lines({"trust": {"calibration": {"kept_round": 2}}})


@pytest.mark.parametrize(("compute", "words"), [(lambda: 1 / 0, "ZeroDivisionError"), (lambda: {"x": {1}}, "JSON")])
def test_a_section_that_fails_is_left_out_with_a_note(compute, words):
    said = []
    assert compute_section("mine", compute, said.append) is None
    (note,) = said
    assert "mine" in note
    assert words in note


def test_a_section_without_mistakes_says_nothing():
    assert compute_section("mine", lambda: {"x": (1, 2)}, pytest.fail) == {"x": [1, 2]}
    assert compute_section("mine", lambda: None, pytest.fail) is None
