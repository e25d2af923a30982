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

OTHER_NAME = re.compile(rb"ssl_transport_security\.cc:\d+\] No match found for server name: ([\w.:-]{1,253})$")

UNVERIFIED = ": invalid certificate verification context"
"""What the core adds to an error before any certificate was verified; it explains nothing."""

EXPLAINED = re.compile(rb"add_port\.cc:\d+\] Failed to add port to server")
"""A line about an error that the server explains itself, in one sentence."""


def find_handshake_error(line: bytes) -> str | None:
    """Return why a handshake failed, from a line of gRPC's core; None: the line is about something else."""
    if found := OTHER_NAME.search(line.strip()):
        return f"the client looks for {found[1].decode('ascii')}, which is no name in the server's certificate"
    found = HANDSHAKE.search(line.strip())
    return found[1].decode("ascii", "replace").lower().replace("_", " ").removesuffix(UNVERIFIED) if found else None


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
                elif not EXPLAINED.search(line):
                    os.write(self._own, line)
