"""fedpeft certs: the certificates of a federation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fedpeft.deployment.identity.certificates import Authority, check_host, check_name
from fedpeft.deployment.identity.pinned_roster import PinnedRoster
from fedpeft.errors import ConfigError
from fedpeft.machine.files import raise_write_errors, replace
from fedpeft.machine.terminal import Console
from fedpeft.reporting.command import run_tool, start_command


@dataclass(frozen=True)
class Command:
    """Make the certificates of a federation: an authority, the server's, and one for each client.

    fedpeft certs --server fl.example.org --clients edge-1,edge-2

    What exists is kept, so more clients can be added later. Hand each client its own folder FOLDER/clients/NAME, and
    nothing else.
    """

    folder: Annotated[Path, tyro.conf.arg(help="where the authority keeps its files")] = Path("certs")
    server: Annotated[
        str,
        tyro.conf.arg(help="host names and addresses of the server: a,b (default: as before, or this machine)"),
    ] = ""
    clients: Annotated[str, tyro.conf.arg(help="names of clients: a,b")] = ""
    days: Annotated[float, tyro.conf.arg(help="how long new certificates are valid")] = 365.0
    renew: Annotated[
        bool, tyro.conf.arg(help="new certificates for the server and the named clients; the old ones become invalid")
    ] = False
    revoke: Annotated[str, tyro.conf.arg(help="names of clients whose present certificates become invalid: a,b")] = ""
    roster: Annotated[
        bool, tyro.conf.arg(help="write FOLDER/roster.txt, which clients pin (join --roster), and print its hash")
    ] = False


def split_words(text: str) -> list[str]:
    """Return the words of a list `a,b`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def make(command: Command, console: Console) -> None:
    """Make what is missing and say what was made.

    Raises:
        FedpeftError: names or folders that can't be used.
    """
    if not 0 < command.days <= 3650:
        raise ConfigError(f"FP1042 days={command.days:g} must be above 0 and at most 3650")
    hosts = [check_host(host) for host in split_words(command.server)]
    for name in (*split_words(command.clients), *split_words(command.revoke)):
        check_name(name)
    authority = Authority(command.folder, command.days)
    present = authority.list_hosts()
    if hosts and present and sorted(hosts) != sorted(present) and not command.renew:
        raise ConfigError(
            f"FP1043 the server's certificate in {command.folder} is for {','.join(present)}, not {','.join(hosts)}; "
            "give --renew for a new one, or leave --server out"
        )
    for name in split_words(command.revoke):
        authority.check_certificate(name)
    if authority.ensure():
        console.print(f"authority  {command.folder}/ca.pem (keep ca.key here)", markup=False, highlight=False)
    if named := authority.ensure_server(hosts, command.renew):
        console.print(f"server     {command.folder}/server.pem for {','.join(named)}", markup=False, highlight=False)
    else:
        _say_kept(console, f"{command.folder}/server.pem", authority.describe_objection())
    for name in split_words(command.revoke):
        authority.revoke(name)
        console.print(f"revoked    {name}", highlight=False)
    for name in split_words(command.clients):
        _ensure_client(authority, name, command.renew, console)
    if command.roster:
        _write_roster(command.folder, console)


def _ensure_client(authority: Authority, name: str, renew: bool, console: Console) -> None:
    """Make a client's certificate if there is none, if a crash left half of one, or if a new one is wanted."""
    exists = (authority.folder / "clients" / name / "client.pem").exists()
    is_replaced = renew or authority.is_torn(name)
    if exists and is_replaced:
        authority.revoke(name)
    if is_replaced or not exists:
        console.print(f"client     {authority.client(name)}", markup=False, highlight=False)
    else:
        _say_kept(console, str(authority.folder / "clients" / name), authority.describe_objection(name))


def _say_kept(console: Console, what: str, objection: str) -> None:
    """Who asks for a certificate that is there already, and that nobody accepts any more, must hear of it."""
    mend = f", but it {objection}: --renew makes a new one" if objection else ""
    console.print(f"kept       {what}{mend}", markup=False, highlight=False, soft_wrap=True)


def _write_roster(folder: Path, console: Console) -> None:
    roster = PinnedRoster.from_authority(folder)
    replace(folder / "roster.txt", roster.to_text().encode())
    console.print(
        f"roster     {folder}/roster.txt of {len(roster.members)} clients, hash {roster.hash}: clients compare "
        "the hash on a channel that the server does not control",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    again = "interrupted; the same command makes what is missing"
    return run_tool(Command, _make_certificates, arguments, silent=False, interrupted=lambda: again)


def _make_certificates(command: Command, console: Console) -> None:
    with raise_write_errors(command.folder):
        make(command, console)


if __name__ == "__main__":
    start_command("commands.certs")
