"""fedpeft join: this machine becomes a client of a federation."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from fedpeft.deployment.options import EdgeOptions, JoinOptions
from fedpeft.machine.terminal import Console
from fedpeft.parts import check_settings, plugins
from fedpeft.reporting.command import parse_flags, run_tool, start_command


@dataclass(frozen=True)
class Command:
    """Join a federation: train on your own rows, which never leave this machine.

    fedpeft join --server fl.example.org:8470 --data rows.csv --certs edge-1
    """

    join: Annotated[JoinOptions, tyro.conf.arg(name="")]
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="parts of your own: a file, folder or installed package"),
    ] = ()
    edge: Annotated[EdgeOptions, tyro.conf.arg(name="")] = field(default_factory=EdgeOptions)


@contextlib.contextmanager
def silence_grpc() -> Iterator[None]:
    """Import grpc in this context, so that its core writes nothing to standard error; a user's GRPC_VERBOSITY stays.

    The core reads the variable at import. `Link.diagnose` explains the same failures in one sentence.
    """
    is_set = "GRPC_VERBOSITY" in os.environ
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        yield
    finally:
        if not is_set:  # a server that this process starts reads refused handshakes from these lines
            del os.environ["GRPC_VERBOSITY"]


def join(command: Command, console: Console) -> None:
    """Take part as a client until the federation is finished.

    Raises:
        FedpeftError: what the user can mend; a value that is not legal is refused before torch is imported.
    """
    with silence_grpc():
        from fedpeft.deployment.client import joining

    joining.join(command.join, command.edge, console)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C or SIGTERM."""
    left = "left the federation; the same command joins it again"
    return run_tool(Command, join, arguments, parse=_parse_command, silent=False, interrupted=lambda: left)


def _parse_command(arguments: list[str]) -> Command:
    """Return the flags, checked; installed packages of parts are ignored from here on.

    Raises:
        ConfigError: a value that is not legal.
    """
    command = parse_flags(Command, arguments)
    plugins.ignore_installed()
    return dataclasses.replace(
        command,
        join=JoinOptions(**check_settings("the command line", JoinOptions, dataclasses.asdict(command.join))),
        edge=EdgeOptions(**check_settings("the command line", EdgeOptions, dataclasses.asdict(command.edge))),
    )


if __name__ == "__main__":
    start_command("join")
