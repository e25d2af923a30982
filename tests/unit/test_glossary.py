"""The glossary names things that exist: identifiers and modules of the code, each in one row."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| Term", "| Module"))
]
TERMS = [row for row in ROWS if len(row) == 4]
MODULES = [row for row in ROWS if len(row) == 3]
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


def test_each_module_that_gets_a_new_name_exists() -> None:
    modules = [module for row in MODULES for module in re.findall(r"`([\w/]+\.py)`", row[0])]
    assert len(modules) > 15
    assert [module for module in modules if not (ROOT / "fedpeft" / module).exists()] == []


def test_each_term_has_one_row() -> None:
    terms = [term.strip() for row in TERMS for term in row[0].split(",")]
    assert len(terms) == len(set(terms))
