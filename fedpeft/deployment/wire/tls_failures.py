"""Refused TLS handshakes, which gRPC's core reports on the process's standard error only.

A server reads its own standard error through a pipe, passes it on, and turns these lines into entries of its log. So
its operator sees that a certificate was refused, and why. The client's name is unknown, since its certificate was not
accepted.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from types import TracebackType

HANDSHAKE = re.compile(rb"Handshake failed with error .*?([A-Z_]+: [^:\n]*|[A-Z_]+)$")


def find_handshake_error(line: bytes) -> str | None:
    """Return why a handshake failed, from a line of gRPC's core; None: the line is about something else."""
    found = HANDSHAKE.search(line.strip())
    return found[1].decode("ascii", "replace").lower().replace("_", " ") if found else None


class Handshakes:
    """A context that calls `refused` with the reason of every failed handshake."""

    def __init__(self, refused: Callable[[str], None]) -> None:
        """Hold the callback; nothing is read yet."""
        self._refused = refused
        self._own = -1
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Handshakes:
        """Put a pipe in the place of standard error."""
        self._own = os.dup(2)
        self._pipe, end = os.pipe()
        os.dup2(end, 2)
        os.close(end)
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Restore standard error."""
        os.dup2(self._own, 2)  # closes the pipe's last writing end, unless a child process holds it
        self._thread.join(1.0)
        os.close(self._own)

    def _read(self) -> None:
        with open(self._pipe, "rb") as lines:
            for line in lines:
                if (reason := find_handshake_error(line)) is not None:
                    self._refused(reason)
                else:
                    os.write(self._own, line)
