"""fedpeft completion: a shell that has read the script completes commands, their flags, and files."""

from __future__ import annotations

import pytest

from fedpeft.commands import completion
from fedpeft.commands.completion import Command, main
from tests.refusals import has_error


def test_a_tyro_that_knows_no_fish_is_one_sentence(capsys, monkeypatch):
    def cli(command, **_):
        if command is Command:
            return Command("fish")
        raise AssertionError("Shell should be one `bash`, `zsh`, or `tcsh`, but got fish")

    monkeypatch.setattr(completion, "_get_command_class", lambda name: int)
    monkeypatch.setattr(completion.tyro, "cli", cli)
    assert main(["fish"]) == 2
    assert has_error(capsys.readouterr().err, "FP1073", "fish")


def test_an_unknown_shell_is_refused_by_name(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["powershell"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert all(shell in said for shell in ("bash", "zsh", "fish"))
