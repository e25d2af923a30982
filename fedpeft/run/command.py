"""The frame of every command: a user's mistake is one sentence, and the exit code says how it ended.

0: done. 1: done, and the answer is no (a claim refuted, runs failed, transcripts that differ). 2: a user's mistake.
130: Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from fedpeft.errors import FedpeftError

MISTAKE = 2
"""Exit code after a user's mistake."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def exit_code(work: Callable[[], int | None], interrupted: Callable[[], str] = lambda: "interrupted") -> int:
    """Do a command's work; its exit code: what the work returns (nothing: 0), `MISTAKE` or `INTERRUPTED`.

    Args:
        work: reads the arguments, too: what is wrong with them is a mistake like any other.
        interrupted: what is said after Ctrl-C.
    """
    try:
        return work() or 0
    except FedpeftError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return MISTAKE
    except KeyboardInterrupt:
        Console().print(f"\n{escape(interrupted())}", highlight=False, soft_wrap=True)
        return INTERRUPTED
