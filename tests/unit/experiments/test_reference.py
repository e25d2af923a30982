"""The tables of the documents are what the code says now."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys

import pytest

from experiments.reference.__main__ import DOCS, MADE, part
from experiments.reference.tables import commands, rows
from fedpeft.__main__ import COMMANDS


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "combinations.md" else n for n in MADE]
)
def test_a_document_says_what_the_code_does(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    assert part(text).strip() == MADE[name]().strip(), "run python -m experiments.reference --write"


@pytest.fixture(scope="module")
def page():
    return commands()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_that_a_command_s_help_shows_is_on_the_page(command, page, capsys, monkeypatch):
    spec = importlib.util.find_spec(f"fedpeft.{command}")
    inside = ".__main__" if spec.submodule_search_locations is not None else ""
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"fedpeft.{command}{inside}").main()
    shown = set(re.findall(r"(?<![\w-])--(?!no-)[a-z][a-z-]+", capsys.readouterr().out))
    section = page.partition(f"## {command}\n")[2].partition("\n## ")[0] + page.partition("## Settings of a run")[2]
    assert shown - set(re.findall(r"`(--[a-z-]+)", section)) == {"--help"} & shown


def test_a_bar_in_a_cell_is_no_new_cell():
    assert rows(("a", "b"), [("x | y", "z")]) == "| a | b |\n| --- | --- |\n| x \\| y | z |\n"
