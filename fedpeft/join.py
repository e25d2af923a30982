"""python -m fedpeft.join: this machine becomes a client of a federation."""

from __future__ import annotations

import dataclasses
import signal
import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Annotated

import tyro

from fedpeft import plugins
from fedpeft.deployment.options import EdgeOptions, JoinOptions
from fedpeft.machine.terminal import Console
from fedpeft.parts import check_settings
from fedpeft.reporting.command import run_command
from fedpeft.wiring import catalogue


@dataclass(frozen=True)
class Command:
    """Join a federation: train on your own rows, which never leave this machine.

    python -m fedpeft.join --server fl.example.org:8470 --data rows.csv --certs edge-1
    """

    join: Annotated[JoinOptions, tyro.conf.arg(name="")]
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="parts of your own: a file, folder or installed package"),
    ] = ()
    edge: Annotated[EdgeOptions, tyro.conf.arg(name="")] = field(default_factory=EdgeOptions)


def join(command: Command, console: Console) -> None:
    """Be a client until the federation is finished.

    Raises:
        FedpeftError: what the user can mend; a value that is not legal is refused before torch is imported.
    """
    options = JoinOptions(**check_settings("the command line", JoinOptions, dataclasses.asdict(command.join)))
    edge = EdgeOptions(**check_settings("the command line", EdgeOptions, dataclasses.asdict(command.edge)))
    plugins.ignore_installed()
    catalogue.use(command.plugin)
    from fedpeft.deployment.client import joining

    joining.join(options, edge, console)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C or SIGTERM."""

    def stop(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    return run_command(
        lambda: join(tyro.cli(Command, args=arguments, prog="python -m fedpeft.join"), Console()),
        lambda: "left the federation; the same command joins it again",
    )


if __name__ == "__main__":
    sys.exit(main())
