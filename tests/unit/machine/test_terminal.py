"""What data contain reaches a terminal as text: escape sequences are shown, and none is obeyed."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import pytest
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from fedpeft.commands.check import main as check
from fedpeft.errors import DataError
from fedpeft.machine.terminal import OBEYED, Console, escape_control_characters
from fedpeft.reporting.command import run_command

ROOT = Path(__file__).parent.parent.parent.parent
CLEAR, TITLE, WIDE, BACKWARD = "\x1b[2J", "\x1b]0;owned\x07", "\x9b31m", "\u202e"


def printed(*things: object, terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=200, force_terminal=terminal)
    for thing in things:
        console.print(thing, highlight=False, soft_wrap=True)
    return file.getvalue()


@pytest.mark.parametrize("sequence", [CLEAR, TITLE, WIDE, BACKWARD, "\x7f", "\x00"])
@pytest.mark.parametrize("terminal", [False, True])
def test_control_characters_are_spelled_out(sequence, terminal):
    table = Table("classes", sequence)
    table.add_row(f"a{sequence}b", sequence)
    text = printed(f"a{sequence}b", escape(sequence), table, terminal=terminal)
    plain = printed("a b", " ", terminal=terminal)
    assert not {chr(code) for code in OBEYED} & set(text) - set(plain) - ({"\x1b"} if terminal else set())
    assert sequence not in text
    assert escape_control_characters(sequence[0]) in text


def test_rich_s_own_styles_and_lines_stay():
    assert printed("[bold]a[/]\nb\tc", terminal=True) == "\x1b[1ma\x1b[0m\nb\tc\n".expandtabs()
    assert printed("[bold]a[/] naïve 日本") == "a naïve 日本\n"


def test_a_progress_bar_shows_a_file_s_name_as_text():
    file = io.StringIO()
    with Progress(console=Console(file=file, width=200, force_terminal=True)) as progress:
        progress.add_task(f"rows of {TITLE}")
    assert TITLE not in file.getvalue()
    assert "rows of \\x1b]0" in file.getvalue()


def test_check_shows_the_escapes_of_class_names(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    names = [f"good{CLEAR}", f"bad{BACKWARD}", f"ugly{WIDE}"]
    rows = [{"text": f"word {i} of a row", "label": names[i % 3]} for i in range(90)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check(["rows.jsonl", "--model", "tiny", "--clients", "3", "--partition", "iid"])
    out = "".join(capfd.readouterr())
    assert {"good\\x1b[2J", "bad\\u202e", "ugly\\x9b31m"} <= set(out.split())
    assert not {"\x1b", "\x9b", BACKWARD} & set(out)


def test_an_error_s_sentence_shows_them_too(capfd):
    def work() -> None:
        raise DataError(f"row 3 has the label {CLEAR}{BACKWARD}")

    assert run_command(work) == 2
    err = capfd.readouterr().err
    assert "\\x1b[2J\\u202e" in err
    assert not {"\x1b", BACKWARD} & set(err)


def test_all_of_fedpeft_writes_to_this_console():
    """A rule: nothing else makes a console of rich's, which obeys what it prints."""
    others = []
    for file in (ROOT / "fedpeft").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.ImportFrom) and [one.name for one in node.names]
            if named and (node.module, "Console") in [("rich.console", name) for name in named]:
                others.append(str(file))
            if named and node.module == "rich" and {"console", "print", "get_console"} & set(named):
                others.append(str(file))
    assert others == [str(ROOT / "fedpeft" / "machine" / "terminal.py")]
