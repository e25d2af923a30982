"""The tables of the documents are what the code says now."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys

import pytest

from experiments.reference.__main__ import DOCS, MADE, find_part
from experiments.reference.choices import find_paper, find_use
from experiments.reference.tables import format_commands, format_rows
from fedpeft.__main__ import COMMANDS, find_module
from fedpeft.parts.families import PEFT_METHODS, strategies

WITHOUT_PAPER = {"full", "linear_probe", "whitened_probe"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.medium) if n == "rules.md" else n for n in MADE])
def test_a_document_says_what_the_code_does(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    assert find_part(text).strip() == MADE[name]().strip(), "run python -m experiments.reference --write"


@pytest.fixture(scope="module")
def page():
    return format_commands()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_that_a_command_s_help_shows_is_on_the_page(command, page, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(find_module(command)).main()
    shown = set(re.findall(r"(?<![\w-])--(?!no-)[a-z][a-z-]+", capsys.readouterr().out))
    section = page.partition(f"## {command}\n")[2].partition("\n## ")[0] + page.partition("## Settings of a run")[2]
    assert shown - set(re.findall(r"`(--[a-z-]+)", section)) == {"--help"} & shown


@pytest.mark.parametrize("family", [strategies, PEFT_METHODS])
def test_each_rule_and_method_has_a_row_that_states_its_use_and_its_paper(family):
    """The medium test compares the whole page; this one finds a part without a sentence or a row."""
    page = (DOCS / "rules.md").read_text(encoding="utf-8")
    rows = {name: (find_use(family.part(name)), find_paper(family.part(name))) for name in family.names}
    assert [name for name, (use, _) in rows.items() if not use] == [], 'end the docstring with "Use it if ..."'
    assert {name for name, (_, paper) in rows.items() if not paper} <= WITHOUT_PAPER
    stale = [name for name, (use, paper) in rows.items() if f"| {use} | {paper} |" not in page]
    assert stale == [], "run python -m experiments.reference --write"


def test_the_first_paper_of_a_docstring_is_shown_with_its_year(monkeypatch):
    module = type(sys)("a_module")
    part = type("Part", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__doc__ = 'A mean (Li, Wu,\n"On: means", arXiv 2401.00001; Xu, arXiv 2402.00002).\n\nUse it if it\nhelps.\n'
    assert find_paper(part) == "Li, Wu, 2024, [2401.00001](https://arxiv.org/abs/2401.00001)"
    assert find_use(part) == "if it helps"
    module.__doc__ = "A mean. Own rule; the idea is of arXiv 2401.00001."
    assert (find_paper(part), find_use(part)) == ("own", "")


def test_a_bar_in_a_cell_is_no_new_cell():
    assert format_rows(("a", "b"), [("x | y", "z")]) == "| a | b |\n| --- | --- |\n| x \\| y | z |\n"
