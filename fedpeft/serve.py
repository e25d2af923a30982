"""fedpeft serve: a federation of real clients, from the first connection to a saved adapter."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape

from fedpeft.deployment.options import ServeOptions
from fedpeft.errors import ConfigError
from fedpeft.machine import files
from fedpeft.machine.terminal import Console
from fedpeft.parts import check_settings
from fedpeft.reporting import help_page
from fedpeft.reporting.command import parse_run_flags, run_command, start_command
from fedpeft.reporting.run_folder import (
    SERVERS_OPTIONS,
    load_default_settings,
    refuse_simulations_run,
    resolve_settings,
)
from fedpeft.reporting.summary import show
from fedpeft.wiring import early_checks
from fedpeft.wiring.config import RunConfig, build_config, read_toml

ABOUT = """Serve a federation: real clients join, train on their own rows, and one adapter comes of it.
fedpeft serve run.toml --clients 3 --listen 0.0.0.0:8470 --certs certs"""

OPTIONS = {
    "CONFIG.toml": "settings; flags override them",
    "--output FOLDER": "the run's folder (default: runs/DATE-DATASET-STRATEGY)",
    "--resume FOLDER": "continue the federation in this folder",
    "--plugin FILE": "parts of your own: a file, folder or installed package (repeatable)",
}

HIDDEN = ("partition", "attack", "grid")
"""Settings of a run that mean nothing to a server: clients have their rows, and run where they are."""


@dataclass(frozen=True)
class Command:
    """Flags of the command, see `OPTIONS`."""

    config: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CONFIG.toml]")] = None
    output: Path | None = None
    resume: Path | None = None
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
    ] = ()
    serve: Annotated[ServeOptions, tyro.conf.arg(name="")] = field(default_factory=ServeOptions)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def parse(arguments: list[str]) -> tuple[RunConfig, ServeOptions, Path, bool]:
    """Return the configuration, the server's own settings, the run's folder, and whether a run is resumed.

    Raises:
        ConfigError, RunError: settings or folders that can't be used.
    """
    command, default = parse_run_flags(Command, arguments, _format_help, _load_defaults)
    planned_by = default.serve.client_rows
    options = build_options(dataclasses.asdict(command.serve), "the command line")
    if command.resume is not None and options.client_rows != planned_by:
        raise ConfigError(
            f"FP1402 --client-rows {options.client_rows} would change the plan of training, and the federation in "
            f"{command.resume} began with {planned_by or 'none'}; leave it out, or start another federation"
        )
    if command.resume is None:
        early_checks.check(build_config(dataclasses.asdict(command.run), "the command line"))
    wanted = command.run if command.resume is not None else _add_form(command.run, options)
    config, folder = resolve_settings(wanted, default.run, command.output, command.resume)
    return config, options, folder, command.resume is not None


def _add_form(config: RunConfig, options: ServeOptions) -> RunConfig:
    from fedpeft.deployment.server.examples import add_form

    return add_form(config, options)


def _format_help() -> str:
    usage = "fedpeft serve [CONFIG.toml] [OPTIONS]"
    return help_page.format_page(usage, ABOUT, OPTIONS, hidden=HIDDEN, more=ServeOptions)


def _load_defaults(command: Command) -> Command:
    """Return the settings of the file, or of the run to resume."""
    if command.resume is not None:
        refuse_simulations_run(command.resume)
    default, options = load_default_settings(command.config, command.resume), ServeOptions()
    if command.resume is not None and (command.resume / SERVERS_OPTIONS).exists():
        options = build_options(read_toml(command.resume / SERVERS_OPTIONS), str(command.resume / SERVERS_OPTIONS))
    return Command(run=default, serve=options)


def build_options(values: dict[str, Any], source: str) -> ServeOptions:
    """Return the server's settings from keys and values, checked, or raise ConfigError."""
    return ServeOptions(**check_settings(source, ServeOptions, values))


def describe_finished(folder: Path) -> str:
    """Return a sentence if the federation in `folder` is finished and waits for no client; else an empty text."""
    try:
        summary = files.read_json(folder / "summary.json")
    except (OSError, ValueError):  # missing, or damaged: it is written anew
        return ""
    if not isinstance(summary, dict):
        return ""
    return f"{folder} is finished: its rounds are done, and summary.json contains the results"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 (also after SIGTERM), 2 for a user's mistake, 130 after two Ctrl-C."""
    folder: Path | None = None

    def work() -> None:
        nonlocal folder
        console = Console()
        config, options, folder, resume = parse(sys.argv[1:] if arguments is None else arguments)
        if resume and (said := describe_finished(folder)):
            console.print(escape(said), highlight=False, soft_wrap=True)
            return
        from fedpeft.deployment.server import serving
        from fedpeft.deployment.server.grid import StoppedError

        try:
            summary = serving.serve(config, options, folder, resume, console)
        except StoppedError:
            console.print(f"\n{escape(explain_stop())}", highlight=False, soft_wrap=True)
        else:
            show(summary, folder, console)

    def explain_stop() -> str:
        return f"stopped; continue with: fedpeft serve --resume {shlex.quote(str(folder))}"

    return run_command(work, explain_stop)


if __name__ == "__main__":
    start_command("serve")
