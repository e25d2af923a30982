"""Behavior of a command before its libraries are loaded.

It refuses Windows, names the extra whose packages it lacks, and ends on Ctrl-C with one line. Garbage is collected only
once the libraries are loaded.

Nothing is under way then that could be left half done, so the process ends at once; an exception would be lost in
destructors and in code of libraries that has no place for it.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

USE_WSL = "fedpeft runs on Linux and macOS; on Windows, use it inside WSL (https://learn.microsoft.com/windows/wsl)"
"""Sentence for users of Windows: fedpeft needs the file locks, limits and processes of POSIX."""

COMMAND_EXTRAS = {
    **dict.fromkeys(("audit", "describe", "evaluate", "flowertune", "report", "simulate", "study", "tune"), "simulate"),
    **dict.fromkeys(("attack", "serve"), "server"),
}
"""The optional dependencies of commands. The other commands need only what a client needs."""

EXTRA_MODULES = {"simulate": "flwr", "server": "grpc_health"}
"""A module by which one sees whether an extra is installed."""

WHILE_IMPORTING = 1_000_000
"""Objects between two garbage collections while a command imports: more than all libraries create."""

_USUAL = gc.get_threshold()

_SIGNALS: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""The signals that end a command, each with Python's own handler."""


def find_command() -> str | None:
    """Return COMMAND if Python is looking for the module of `python -m fedpeft.COMMAND` or `fedpeft.commands.COMMAND`.

    Returns:
        The name of the command; "" for `python -m fedpeft`; None for any other process.
    """
    named = next((module for flag, module in pairwise(sys.orig_argv) if flag == "-m"), "")
    package, _, module = named.partition(".")
    return module.removeprefix("commands.") if sys.argv[:1] == ["-m"] and package == "fedpeft" else None


def refuse_windows() -> None:
    """End a command on Windows with one sentence, before a module that Windows lacks is imported.

    Raises:
        SystemExit: this is Windows; the exit code is that of a user's mistake.
    """
    if sys.platform == "win32":
        print(f"error: {USE_WSL}", file=sys.stderr)
        raise SystemExit(2)


def refuse_missing_extra(command: str) -> None:
    """End a command whose optional dependencies are not installed with one sentence.

    Raises:
        SystemExit: they are missing; the exit code is that of a user's mistake.
    """
    extra = COMMAND_EXTRAS.get(command)
    if extra and find_spec(EXTRA_MODULES[extra]) is None:
        print(
            f"error: {command} needs more packages than a client; install them with: pip install 'fedpeft[{extra}]'",
            file=sys.stderr,
        )
        raise SystemExit(2)


def postpone_collection() -> None:
    """Collect no garbage while the command imports, until `begin_collection`.

    Imports create half a million objects that stay. Collections among them take a fifth of the time of the imports.
    """
    gc.set_threshold(WHILE_IMPORTING)


def begin_collection() -> None:
    """Collect garbage as Python does by default, but leave out what exists now; only after `postpone_collection`.

    A program that imports fedpeft keeps its own garbage collection.
    """
    if gc.get_threshold()[0] == WHILE_IMPORTING:
        gc.freeze()
        gc.set_threshold(*_USUAL)


def handle_signals() -> None:
    """From here on Ctrl-C and SIGTERM end the process with a line, where nothing else is to come of them.

    Raises:
        ValueError: this is not the main thread.
    """
    for number, usual in _SIGNALS.items():
        if signal.getsignal(number) == usual:  # a job in the background ignores Ctrl-C
            signal.signal(number, _end)


def restore_signals() -> None:
    """Restore the handlers that `handle_signals` replaced; the command sets its own later."""
    for number, usual in _SIGNALS.items():
        if signal.getsignal(number) is _end:
            signal.signal(number, usual)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):  # nobody reads it
        os.write(1, b"\ninterrupted\n")
    os._exit(INTERRUPTED)
