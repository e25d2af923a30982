"""docs/known-failures.md claims nothing without a source and a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "known-failures.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| reported")]


def test_each_row_cites_a_public_report_and_names_a_test() -> None:
    assert len(ROWS) > 10
    source = re.compile(
        r"\]\(https://(?:github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/\d+|arxiv\.org/abs/\d{4}\.\d{5})\)"
    )
    for row in ROWS:
        failure, _, tests = re.split(r" \| ", row.strip("| "))
        assert source.search(failure), row
        assert "::test_" in tests, row


def test_each_named_test_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) >= len(ROWS)
    files = {file: (ROOT / "tests" / file).read_text(encoding="utf-8") for file, _ in named}
    assert [name for file, name in named if not re.search(rf"^def {name}\(", files[file], re.MULTILINE)] == []
