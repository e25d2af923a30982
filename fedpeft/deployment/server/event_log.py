"""Structured logs of a server: one JSON object a line, with time, level and event, and whatever belongs to it.

Names, rounds, bytes and reasons are logged; keys, certificates, rows and tensors never are. The file has mode 0600: who
belongs to a federation can be a secret by itself.
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
"""Of events; the others are "info"."""


class Events:
    """Writes `file`, and tells `listener` the same.

    A log that can't be written (a full disk) must not end a federation: the line is left out.
    """

    def __init__(self, file: Path, listener: Callable[[str, dict[str, Any]], None]) -> None:
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
