"""The size of the documentation: a page answers one question, and no line of code is cut off."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
REFERENCE = {
    *("claims.md", "commands.md", "decisions.md", "errors.md", "files.md", "glossary.md"),
    *("papers.md", "rules.md", "survey.md"),
}
"""Pages to look something up in, whose tables are long."""
CODE = re.compile(r"^```.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"<!-- (made by|families|clients: begin).*?<!-- (end|/families|clients: end) -->", re.DOTALL)
GENERATED_PAGES = {"claims.md", "errors.md", "papers.md"}


def count_prose(page: Path) -> int:
    """Return the number of words outside code blocks, tables and generated parts."""
    text = CODE.sub("", GENERATED.sub("", page.read_text(encoding="utf-8")))
    return len(" ".join(line for line in text.splitlines() if not line.startswith("|")).split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_read_in_ten_minutes(page: Path) -> None:
    words = CODE.sub("", page.read_text(encoding="utf-8")).split()
    assert page.name in REFERENCE or len(words) <= 1500


def test_the_prose_of_all_pages_is_bounded() -> None:
    assert sum(count_prose(page) for page in PAGES if page.name not in GENERATED_PAGES) <= 32_000


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_a_code_block_is_not_cut_off(page: Path) -> None:
    """A browser shows about 100 characters of a line, and hides the rest."""
    blocks = CODE.findall(page.read_text(encoding="utf-8"))
    assert [line for block in blocks for line in block.splitlines() if len(line) > 100] == []
