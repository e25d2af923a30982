"""python -m fedpeft.conformance PLUGIN...: whether a plugin's parts do what every part must."""

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
    select: Annotated[str, tyro.conf.arg(help="only tests whose name has this in it")] = ""


def check(command: Command) -> int:
    """Run the suite; pytest's exit code: 0 where all tests have passed.

    Raises:
        FedpeftError: there is no pytest, or no such plugin, or it holds no parts.
    """
    from fedpeft import plugins
    from fedpeft.wiring import catalogue

    if importlib.util.find_spec("pytest") is None:
        raise ConfigError(
            "FP1081 the conformance suite needs the package pytest; install it with: pip install 'fedpeft[test]'"
        )
    import pytest

    if not command.plugins:
        raise ConfigError("FP1082 name a plugin: python -m fedpeft.conformance my_rules.py")
    catalogue.use(command.plugins)
    if not any(plugin.names for plugin in plugins.list_named()):
        raise ConfigError(f"FP1083 {', '.join(command.plugins)} holds no parts")
    folder = Path(__file__).parent
    own = ["-c", os.devnull, "--rootdir", str(folder), "--import-mode=importlib", "-q", "--tb=short"]
    own += ["-p", "no:cacheprovider", "-p", "no:warnings"]
    return int(pytest.main([*own, *(["-k", command.select] if command.select else []), str(folder)]))


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code: 0, 1 where a test has failed, 2 for a user's mistake."""
    return run_tool(Command, lambda command, _: check(command), arguments)


if __name__ == "__main__":
    start_command("conformance.__main__")
