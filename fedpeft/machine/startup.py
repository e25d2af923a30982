"""Behavior of a command before its libraries are loaded: it refuses Windows and ends on Ctrl-C with one line.

Nothing is under way then that could be left half done, so the process ends at once; an exception would be lost in
destructors and in code of libraries that has no place for it.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

USE_WSL = "fedpeft runs on Linux and macOS; on Windows, use it inside WSL (https://learn.microsoft.com/windows/wsl)"
"""Sentence for users of Windows: fedpeft needs the file locks, limits and processes of POSIX."""

_SIGNALS: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""The signals that end a command, each with Python's own handler."""


def is_command() -> bool:
    """Return whether Python is looking for the module of `python -m fedpeft` or `python -m fedpeft.COMMAND`."""
    words = sys.orig_argv
    named = [module for flag, module in pairwise(words) if flag == "-m"][:1]
    return sys.argv[:1] == ["-m"] and [module.partition(".")[0] for module in named] == ["fedpeft"]


def refuse_windows() -> None:
    """End a command on Windows with one sentence, before a module that Windows lacks is imported.

    Raises:
        SystemExit: this is Windows; the exit code is that of a user's mistake.
    """
    if sys.platform == "win32":
        print(f"error: {USE_WSL}", file=sys.stderr)
        raise SystemExit(2)


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
