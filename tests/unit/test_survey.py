"""docs/survey.md has each of the survey's 76 rows once, with a command or the reason why there is none."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.unit.test_documented_commands import ROOT

PAGE = ROOT / "docs" / "survey.md"


@dataclass(frozen=True)
class Row:
    """A row of the page's tables; a missing command is an empty text."""

    number: int
    named: str
    command: str
    shows: str
    left_out: str


def read_rows() -> list[Row]:
    """Return the rows of all tables, in the page's order."""
    lines = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = []
    for number, rest in lines:
        named, command, shows, left_out = (cell.strip() for cell in re.split(r" ?\| ", rest + " "))
        found.append(Row(int(number), named, command.strip("`"), shows, left_out))
    return found


def read_files() -> dict[str, str]:
    """Return the files that the page writes, by name."""
    found = re.findall(r"^```toml\n# (\S+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return dict(found)


def test_all_rows_are_there_once_in_their_order() -> None:
    assert [row.number for row in read_rows()] == list(range(1, 77))


def test_a_row_has_a_command_and_what_it_shows_or_why_not() -> None:
    for row in read_rows():
        assert row.named, row
        assert (row.command and row.shows) or row.left_out, row


def test_commands_use_what_the_page_has_made() -> None:
    text = PAGE.read_text(encoding="utf-8")
    made = set(re.findall(r"--output (runs/\w+)", text))
    for row in read_rows():
        assert row.command == "" or row.command.startswith(("$S", "$LM", "$QA", "fedpeft ")), row
        assert set(re.findall(r"runs/\w+", row.command)) <= made, row
        files = re.findall(r"[\w./]+\.toml", row.command)
        assert {file for file in files if not (ROOT / file).exists()} <= set(read_files()), row
