"""Test whether a plugin's parts meet the requirements of every part: fedpeft conformance PLUGIN..."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fedpeft.errors import ConfigError
from fedpeft.reporting.command import run_tool, start_command


@dataclass(frozen=True)
class Command:
    """Run the conformance suite on the parts of your own file, folder or installed package."""

    plugins: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PLUGIN...", help="a file, a folder with __init__.py, or an installed package"),
    ]
    select: Annotated[str, tyro.conf.arg(help="only tests whose name contains this")] = ""


def check(command: Command) -> int:
    """Run the suite and return pytest's exit code, which is 0 if all tests pass.

    Raises:
        FedpeftError: pytest is not installed, or the plugin does not exist or has no parts.
    """
    from fedpeft.parts import plugins
    from fedpeft.wiring import catalogue

    if importlib.util.find_spec("pytest") is None:
        raise ConfigError(
            "FP1081 the conformance suite needs the package pytest; install it with: pip install 'fedpeft[test]'"
        )
    import pytest

    if not command.plugins:
        raise ConfigError("FP1082 name a plugin: fedpeft conformance my_rules.py")
    catalogue.use(command.plugins)
    if not any(plugin.names for plugin in plugins.list_named()):
        raise ConfigError(f"FP1083 {', '.join(command.plugins)} contains no parts; name a plugin that does")
    folder = Path(__file__).parent
    own = ["-c", os.devnull, "--rootdir", str(folder), "--import-mode=importlib", "-q", "--tb=short"]
    own += ["-p", "no:cacheprovider", "-p", "no:warnings"]
    return int(pytest.main([*own, *(["-k", command.select] if command.select else []), str(folder)]))


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if a test fails, 2 for a user's mistake."""
    return run_tool(Command, lambda command, _: check(command), arguments)


if __name__ == "__main__":
    start_command("conformance.__main__")
