"""Attack a server's settings on loopback before others join: fedpeft attack [CONFIG.toml] [SERVER FLAGS].

    fedpeft attack --privacy secure_sum --clients 5
    fedpeft attack run.toml

The command prints a table of what each attack learned, and who refused it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape
from rich.table import Table

from fedpeft.deployment.options import EdgeOptions, ServeOptions
from fedpeft.machine.terminal import Console
from fedpeft.parts import check_settings
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.reporting import help_page
from fedpeft.reporting.command import parse_run_flags, run_tool, start_command
from fedpeft.reporting.run_folder import load_default_settings
from fedpeft.wiring.config import RunConfig, build_config

ABOUT = """Attack a server's settings: hostile servers and clients on this machine, and what each of them learned.
fedpeft attack run.toml --privacy secure_sum"""

OPTIONS = {
    "CONFIG.toml": "the server's settings; flags override them",
    "--fewest N": f"fewest clients of a sum that a client joins (default: {FEWEST})",
    "SERVER FLAGS": "flags of serve; dataset, model, clients and rounds are replaced by small ones",
    "--plugin FILE": "parts of your own: a file, folder or installed package (repeatable)",
}

WIDTH = 150
"""Minimum number of characters per line of the table."""


@dataclass(frozen=True)
class Command:
    """Command line, see `OPTIONS`."""

    config: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CONFIG.toml]")] = None
    fewest: int = FEWEST
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
    ] = ()
    serve: Annotated[ServeOptions, tyro.conf.arg(name="")] = field(default_factory=ServeOptions)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    It is 0, 1 if an attack succeeds that should not or is undecided, and 2 for a user's mistake.
    """
    return run_tool(Command, _run_attacks, arguments, parse=_parse_command)


def _parse_command(arguments: list[str]) -> Command:
    return parse_run_flags(Command, arguments, _format_help, _load_defaults)[0]


def _format_help() -> str:
    return help_page.format_page("fedpeft attack [CONFIG.toml] [OPTIONS] [SERVER FLAGS]", ABOUT, OPTIONS)


def _load_defaults(command: Command) -> Command:
    return Command(run=load_default_settings(command.config, None))


def _run_attacks(command: Command, console: Console) -> int:
    from fedpeft.attack.suite import ATTACKS, attack_settings

    config = build_config(vars(command.run), "the command line")
    options = ServeOptions(**check_settings("the command line", ServeOptions, vars(command.serve)))
    check_settings("the command line", EdgeOptions, {"fewest": command.fewest})
    console.width = max(console.width, WIDTH)
    table = Table("attack", "attacker controls", "learned", "refused by", "verdict", show_lines=True)
    results = []
    for result in attack_settings(config, options, command.fewest):
        results.append(result)
        console.print(f"{result.attack.name}: {escape(result.verdict)}", highlight=False)
        told = (f"{result.attack.name}: {result.attack.about}", result.attack.controls, result.learned, result.refused)
        table.add_row(*map(escape, told), f"[bold red]{result.verdict}[/]" if not result.holds else result.verdict)
    console.print(table)
    if len(results) < len(ATTACKS):
        console.print(f"{len(ATTACKS) - len(results)} attacks on secure sums were skipped, because --privacy uses none")
    broken = [result.attack.name for result in results if result.decided and not result.holds]
    undecided = [result.attack.name for result in results if not result.decided]
    console.print(
        f"{len(results)} attacks, {len(broken)} succeeded that should not{': ' * bool(broken)}{', '.join(broken)}"
    )
    if undecided:
        console.print(f"{len(undecided)} undecided, so run them again on a free machine: {', '.join(undecided)}")
    return 1 if broken or undecided else 0


if __name__ == "__main__":
    start_command("attack.__main__")
