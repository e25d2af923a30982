"""fedpeft transcript: whether two clients were told the same by their server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape
from rich.table import Table

from fedpeft.errors import RunError
from fedpeft.machine.terminal import Console
from fedpeft.reporting.command import run_tool, start_command


@dataclass(frozen=True)
class Command:
    """Compare what a server has told two clients: model and settings, round by round.

    fedpeft transcript a/transcript.jsonl b/transcript.jsonl --certificate ca.pem
    """

    one: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A", help="a client's transcript.jsonl")]
    other: Annotated[
        Path, tyro.conf.Positional, tyro.conf.arg(metavar="B", help="another's, or the server's rounds.signed.jsonl")
    ]
    certificate: Annotated[
        Path | None,
        tyro.conf.arg(help="ca.pem (or the server's certificate): check that the server has signed all of it"),
    ] = None


def compare(command: Command, console: Console) -> bool:
    """Print what both clients received; return whether it was the same.

    Raises:
        FedpeftError: a file is not a transcript, or was changed.
    """
    from fedpeft.deployment.identity.signing import Verifier
    from fedpeft.deployment.transcript.comparison import (
        compare_transcripts,
        pair_records,
        read_transcript,
    )

    verifier = None
    if command.certificate is not None:
        try:
            verifier = Verifier(command.certificate.read_bytes())
        except OSError as error:
            raise RunError(f"FP5100 {command.certificate} can't be read: {error.strerror}") from None
    one, other = read_transcript(command.one, verifier), read_transcript(command.other, verifier)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if verifier is not None:
        say("signatures: all are the server's")
    elif one.signed and other.signed:
        say("signatures: not checked; give --certificate ca.pem")
    else:
        say("signatures: none, the server ran without TLS; whoever has a transcript could have written it")
    title = "what each was sent: form, work and digest of the task, which may differ"
    table = Table("round", escape(one.client or "A"), escape(other.client or "B"), title=title)
    for called, *sent in pair_records(one, other):
        table.add_row(called, *(escape(text or "-") for text in sent))
    console.print(table)
    verdict = compare_transcripts(one, other)
    for line in verdict.lines:
        say(line)
    return verdict.same


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 (the same), 1 (different), 2 for a user's mistake or a forged file."""
    return run_tool(Command, lambda command, console: 0 if compare(command, console) else 1, arguments, silent=False)


if __name__ == "__main__":
    start_command("commands.transcript")
