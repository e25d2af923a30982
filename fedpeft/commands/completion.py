"""fedpeft completion SHELL: what a shell needs to complete the commands of fedpeft and their flags.

    fedpeft completion bash > ~/.local/share/bash-completion/completions/fedpeft

It is made from the commands' own declarations, by tyro, and printed. A shell reads it when it starts; who updates
fedpeft makes it again. In bash, where a command takes no word that is known, names of files complete as usual.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any, Literal, Union

import tyro

from fedpeft.__main__ import COMMANDS, find_module
from fedpeft.errors import ConfigError
from fedpeft.reporting.command import run_tool, start_command

PROGRAM = "fedpeft"
"""The console script, which alone can be completed: a shell binds completions to a program's name."""

FILES = """
_fedpeft() {
  FUNCTION
  [[ -n "${COMPREPLY[*]}" ]] || COMPREPLY=()
}
complete -o bashdefault -o default -F _fedpeft fedpeft
"""
"""Tyro binds a FUNCTION that has one empty answer where it knows none, so that bash does not try files."""


@dataclass(frozen=True)
class Command:
    """Print a script that lets a shell complete the commands of fedpeft and their flags.

    fedpeft completion bash > ~/.local/share/bash-completion/completions/fedpeft
    fedpeft completion zsh > DIRECTORY/_fedpeft, where DIRECTORY is one of $fpath
    fedpeft completion fish > ~/.config/fish/completions/fedpeft.fish
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(help="the shell")]


def write_script(shell: str) -> str:
    """Return the completion script for `shell`: bash, zsh or fish.

    Raises:
        ConfigError: the installed tyro makes none.
    """
    commands = [
        Annotated[_get_command_class(name), tyro.conf.subcommand(name=name, description=about)]
        for name, about in COMMANDS.items()
    ]
    union: Any = Union[tuple(commands)]  # noqa: UP007 (of a number that is not known here)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            tyro.cli(union, args=["--tyro-write-completion", shell, "-"], prog=PROGRAM)
    except AssertionError:  # how earlier ones say so
        raise ConfigError(
            f"FP1073 tyro {version('tyro')} has no completion for {shell}; upgrade it: pip install -U tyro"
        ) from None
    made = printed.getvalue()
    bound = re.search(rf"^complete .*-F (\w+) {PROGRAM}$", made, re.MULTILINE) if shell == "bash" else None
    return made + (FILES.replace("FUNCTION", bound[1]) if bound else "")


def _get_command_class(name: str) -> Any:
    """Return the class of a command's flags."""
    return importlib.import_module(find_module(name)).Command


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_tool(Command, lambda command, _: print(write_script(command.shell)), arguments, silent=False)


if __name__ == "__main__":
    start_command("commands.completion")
