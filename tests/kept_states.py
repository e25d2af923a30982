"""What clients have kept in a run's folder, whatever the server says of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from fedpeft.clients.store import FILE
from safetensors.torch import load

from fedpeft.peft.adapter import State


def kept(folder: Path) -> dict[int, dict[int, State]]:
    """By client and round; nothing where there is no file."""
    found: dict[int, dict[int, State]] = {}
    if (folder / FILE).exists():
        with closing(sqlite3.connect(folder / FILE)) as database:
            for client, round_number, content in database.execute("SELECT * FROM states ORDER BY client, round"):
                found.setdefault(client, {})[round_number] = load(content)
    return found
