"""Structured logs of a server: one JSON object a line, with time, level, event and its fields.

Names, rounds, bytes and reasons are logged; keys, certificates, examples and tensors never are. The file has mode 0600,
because membership of a federation can be a secret.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LEVELS = {"refused": "warning", "dropped": "warning", "failed": "error"}
"""Levels of events; all others are "info"."""


class Events:
    """Writes each event to `file`, and passes it on to `listener`.

    A log that can't be written (a full disk) must not end a federation: the line is left out.
    """

    def __init__(self, file: Path, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """Hold the file and the listener."""
        self._file = file
        self._listener = listener
        self._lock = threading.Lock()

    def emit(self, event: str, **fields: Any) -> None:
        """Write one line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "level": LEVELS.get(event, "info"), "event": event, **fields})
        with self._lock:
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                with open(os.open(self._file, flags, 0o600), "a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError:
                pass
            self._listener(event, fields)
