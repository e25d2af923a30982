"""python -m fedpeft.export RUN --client 3 --output DIR: one client's own adapter from a run with private tensors."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from fedpeft.config import from_mapping, read_toml
from fedpeft.console import ConsoleObserver
from fedpeft.errors import FedpeftError, RunError


@dataclass(frozen=True)
class Command:
    """Write the adapter of one client: what is shared, and what the client has kept for itself."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="the run's folder")]
    client: Annotated[int, tyro.conf.arg(help="client id, from 0")]
    output: Annotated[Path, tyro.conf.arg(help="folder that adapter/ is written to")]


def export(run: Path, client: int, output: Path) -> None:
    """Write `output`/adapter.

    Raises:
        FedpeftError: there is no such run or client, or its clients have no adapters of their own.
    """
    from fedpeft.simulation import Simulation

    if not (run / "config.toml").is_file():
        raise RunError(f"{run} holds no run: there is no config.toml in it")
    config = from_mapping(read_toml(run / "config.toml"), str(run / "config.toml"))
    simulation = Simulation(config, run, ConsoleObserver(Console(quiet=True)))
    output.mkdir(parents=True, exist_ok=True)
    simulation.save(simulation.client_state(client), output)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    from fedpeft.simulate import quiet_libraries

    command = tyro.cli(Command, args=arguments, prog="python -m fedpeft.export")
    quiet_libraries()
    try:
        export(command.run, command.client, command.output)
    except FedpeftError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
