"""The glossary names things that exist: identifiers of the code, each in one row."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| Term")
]
TERMS = [row for row in ROWS if len(row) == 4]
SOURCE = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("fedpeft", "strategies", "clients")
    for path in (ROOT / folder).rglob("*.py")
)


def current_names(cell: str) -> list[str]:
    """Return the identifiers of a cell that the code has today: those left of an arrow."""
    return [
        name.split(".")[-1] for part in cell.split(";") for name in re.findall(r"`([\w.]+)`", part.partition("→")[0])
    ]


def test_each_identifier_of_the_glossary_is_in_the_code() -> None:
    names = [name for row in TERMS for name in current_names(row[3])]
    assert len(names) > 80
    assert [name for name in names if not re.search(rf"\b{name}\b", SOURCE)] == []


def test_each_term_has_one_row() -> None:
    terms = [term.strip() for row in TERMS for term in row[0].split(",")]
    assert len(terms) == len(set(terms))
