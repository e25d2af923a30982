"""The tables of the documents are what the code says now."""

from __future__ import annotations

import pytest

from experiments.reference.__main__ import DOCS, MADE, part
from experiments.reference.tables import rows


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "choosing.md" else n for n in MADE])
def test_a_document_says_what_the_code_does(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    assert part(text).strip() == MADE[name]().strip(), "run python -m experiments.reference --write"


def test_a_bar_in_a_cell_is_no_new_cell():
    assert rows(("a", "b"), [("x | y", "z")]) == "| a | b |\n| --- | --- |\n| x \\| y | z |\n"
