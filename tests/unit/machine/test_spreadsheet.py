"""CSV files that spreadsheets open hold no formulas, and their numbers stay numbers."""

from __future__ import annotations

import csv

import pytest

from fedpeft.evaluate.answered_rows import write
from fedpeft.machine.spreadsheet import escape_cell

FORMULAS = ["=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1+1", "\n=1+1", "  =1+1", "=", "-",
            "＝1+1", '=HYPERLINK("http://x")', "-inf", "+1_0", "+ 1", "-1 "]  # fmt: skip
PLAIN = ["", "a=b", "3", "-3", "+3.5", "-1e-5", "1,5", "2024-01-02", "'=1", "some text - more", "a\n=b"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_has_an_apostrophe_in_front(text):
    assert escape_cell(text) == "'" + text


@pytest.mark.parametrize("text", PLAIN)
def test_any_other_text_stays_as_it_is(text):
    assert escape_cell(text) == text


def test_no_cell_of_a_table_of_answers_begins_a_formula(tmp_path):
    """Neither texts, nor values of JSON, nor names of columns and classes: all of them come from elsewhere."""
    record = {"text": "=1+1", "@column": {"a": 1}, "none": None, "number": -3, "list": ["=1"]}
    answer = {"predicted": "+class", "probability of =class": "0.5"}
    list(write(iter([(("row 1", record), answer)] * 2), tmp_path / "out.csv"))
    with (tmp_path / "out.csv").open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["text", "'@column", "none", "number", "list", "predicted", "probability of =class"]
    assert lines == [["'=1+1", '{"a": 1}', "", "-3", '["=1"]', "'+class", "0.5"]] * 2
