"""python -m fedpeft.certs: the certificates of a federation."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from fedpeft.certificates import Authority
from fedpeft.errors import ConfigError, FedpeftError


@dataclass(frozen=True)
class Command:
    """Make the certificates of a federation: an authority, the server's, and one for each client.

    python -m fedpeft.certs --server fl.example.org --clients edge-1,edge-2

    What exists is kept, so more clients can be added later. Hand each client its own folder FOLDER/clients/NAME, and
    nothing else.
    """

    folder: Annotated[Path, tyro.conf.arg(help="where the authority keeps its files")] = Path("certs")
    server: Annotated[str, tyro.conf.arg(help="host names and addresses of the server: a,b")] = "localhost,127.0.0.1"
    clients: Annotated[str, tyro.conf.arg(help="names of clients: a,b")] = ""
    days: Annotated[float, tyro.conf.arg(help="how long new certificates are valid")] = 365.0
    renew: Annotated[bool, tyro.conf.arg(help="make new certificates for the server and the clients named")] = False
    revoke: Annotated[str, tyro.conf.arg(help="names of clients whose present certificates count no more: a,b")] = ""


def words(text: str) -> list[str]:
    """The words of a list `a,b`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def make(command: Command, console: Console) -> None:
    """Make what is missing and say what was made.

    Raises:
        FedpeftError: names or folders that can't be used.
    """
    if not 0 < command.days <= 3650:
        raise ConfigError(f"days={command.days:g} must be above 0 and at most 3650")
    if not words(command.server):
        raise ConfigError("the server's certificate needs at least one host name or address: --server a,b")
    authority = Authority(command.folder, command.days)
    if authority.ensure():
        console.print(f"authority  {command.folder}/ca.pem (keep ca.key here)", highlight=False)
    if command.renew or not (command.folder / "server.pem").exists():
        authority.server(words(command.server))
        console.print(f"server     {command.folder}/server.pem for {command.server}", highlight=False)
    for name in words(command.revoke):
        authority.revoke(name)
        console.print(f"revoked    {name}", highlight=False)
    for name in words(command.clients):
        if command.renew or not (command.folder / "clients" / name / "client.pem").exists():
            console.print(f"client     {authority.client(name)}", highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 for a user's mistake."""
    try:
        make(tyro.cli(Command, args=arguments, prog="python -m fedpeft.certs"), Console())
    except FedpeftError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
