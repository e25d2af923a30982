"""SECURITY.md says nothing without a test: those that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
HEADS = ("|---", "| it can |", "| they can |", "| cohort |")


def test_the_tests_that_the_trust_table_names_exist():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 40
    files = {file: (ROOT / "tests" / file).read_text(encoding="utf-8") for file, _ in named}
    missing = [
        f"{file}::{test}" for file, test in named if not re.search(rf"^ *def {test}\(", files[file], re.MULTILINE)
    ]
    assert missing == []


def test_every_line_of_the_trust_table_has_a_test_or_says_that_it_has_none():
    lines = [line for line in TEXT.splitlines() if line.startswith("|") and not line.startswith(HEADS)]
    assert len(lines) > 20
    assert [line for line in lines if "::" not in line and not line.endswith("| none |")] == []
