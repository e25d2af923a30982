"""A file of signed statements, one JSON object a line: only ever appended to, and private.

A line counts once it is complete. An incomplete last line, left by a power cut, is cut off. Anything else that is not a
statement was changed by somebody.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpeft.deployment.identity.signing import RECORD, TASK, SignedStatement
from fedpeft.errors import RunError
from fedpeft.machine import files

_LABELS = {RECORD: "record", TASK: "task"}

Line = tuple[str, SignedStatement]
"""A kind (`fedpeft.deployment.identity.signing`), and a statement of it."""


class UnwrittenError(RunError):
    """The file can't be written now, for example because the disk is full; it may work later."""


@dataclass(frozen=True)
class SignedLog:
    """The statements in a file; mode 0600."""

    path: Path

    def read(self) -> Iterator[Line]:
        """Yield all complete lines; none if the file does not exist.

        Raises:
            RunError: the file can't be read, or contains something else.
        """
        number = 1
        try:
            with open(self.path, "rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield _parse_line(line)
                    number += 1
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"FP5100 {self.path} can't be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RunError(f"FP5101 line {number} of {self.path} is not a server's statement") from None

    def mend(self) -> None:
        """Cut off an incomplete last line: it was being written, and nobody has acted on it.

        Raises:
            RunError: the file can't be written.
        """
        try:
            with open(self.path, "r+b") as file:
                content = file.read()
                whole = content.rfind(b"\n") + 1
                if whole < len(content):
                    file.truncate(whole)
                    os.fsync(file.fileno())
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"FP5102 {self.path} can't be written: {error.strerror}") from None

    @property
    def size(self) -> int:
        """Size of the file in bytes; 0: there is no file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, lines: Sequence[Line]) -> None:
        """Append lines to the file and flush them to disk, all or none.

        Raises:
            UnwrittenError: the file can't be written.
        """
        if not lines:
            return
        try:
            content = b"".join(encode_line(kind, statement) for kind, statement in lines)
            files.append(self.path, content, private=True)
        except OSError as error:
            raise UnwrittenError(f"FP5102 {self.path} can't be written: {error.strerror}") from None


def encode_line(kind: str, statement: SignedStatement) -> bytes:
    """Return a line as it is on disk."""
    line = {
        _LABELS[kind]: statement.content.decode(),
        "signature": base64.b64encode(statement.signature).decode(),
        "certificate": base64.b64encode(statement.certificate).decode(),
    }
    return json.dumps(line).encode() + b"\n"


def _parse_line(line: bytes) -> Line:
    fields = json.loads(line)
    [kind] = [kind for kind, label in _LABELS.items() if label in fields]
    signature, certificate = (base64.b64decode(fields[name], validate=True) for name in ("signature", "certificate"))
    content = fields[_LABELS[kind]]
    if not isinstance(content, str):
        raise TypeError("a statement is a text")
    return kind, SignedStatement(content.encode(), signature, certificate)
