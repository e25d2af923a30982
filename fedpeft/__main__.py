"""fedpeft COMMAND ...: every command by one name."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec

from fedpeft import __version__
from fedpeft.machine import startup

COMMANDS = {
    "init": "create a project: example data, a run, a strategy of your own, and a test",
    "check": "inspect a dataset: rows, classes, lengths, duplicates, and a partition",
    "simulate": "run a federation on this machine, from data to a scored adapter",
    "study": "run a grid of settings and seeds, with means, intervals and comparisons",
    "tune": "search settings by trials, with early stopping and hybrids of PEFT methods",
    "report": "write runs and studies to one page and CSV files",
    "describe": "describe the parts of a run: purpose, origin and settings",
    "predict": "print the answers of finished runs to a text",
    "export": "export a finished run's adapter with a model card, or merged into its base",
    "evaluate": "evaluate a finished run beside its base",
    "flowertune": "run the configuration of a FlowerTune project of Flower",
    "certs": "create the certificates of a federation of real clients",
    "serve": "run the server of real clients",
    "join": "take part as a client; its examples stay on its machine",
    "transcript": "compare what a server has sent to two clients",
    "audit": "test whether a mechanism or a finished run leaks protected data",
    "attack": "attack a server's settings on this machine, as hostile servers and clients",
    "conformance": "test your own parts against the rules for all parts",
    "completion": "print a completion script for bash, zsh or fish",
}
"""The purpose of each command; the name is that of a module or package."""


def find_module(command: str) -> str:
    """Return the module of a command, such as `fedpeft.simulate`, without importing it."""
    if find_spec(f"fedpeft.commands.{command}"):
        return f"fedpeft.commands.{command}"
    spec = find_spec(f"fedpeft.{command}")
    is_package = spec is not None and spec.submodule_search_locations is not None
    return f"fedpeft.{command}.__main__" if is_package else f"fedpeft.{command}"


def format_overview() -> str:
    """Return the page that lists the commands."""
    lines = [f"  {name:<12} {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            f"fedpeft {__version__}: federated parameter-efficient fine-tuning",
            "",
            "usage: fedpeft COMMAND [OPTIONS]    (details: fedpeft COMMAND --help)",
            "",
            *lines,
        ]
    )


def main() -> int:
    """Run the named command; return its exit code, or 2 for an unknown command."""
    startup.refuse_windows()
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(format_overview())
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        print(f"fedpeft {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _refuse_unknown(name)
    startup.refuse_missing_extra(name)
    sys.argv = [f"fedpeft {name}", *rest]
    startup.handle_signals()
    runpy.run_module(find_module(name), run_name="__main__", alter_sys=True)  # ends by SystemExit, as python -m does
    return 0


def _refuse_unknown(name: str) -> int:
    from fedpeft.errors import ConfigError
    from fedpeft.parts import suggest_legal
    from fedpeft.reporting.command import run_command

    def refuse() -> None:
        raise ConfigError(f"FP1011 there is no command {name!r}; {suggest_legal(name, COMMANDS)}")

    return run_command(refuse)


if __name__ == "__main__":
    sys.exit(main())
