"""python -m fedpeft.flower.section: the section of pyproject.toml that lists the Flower app's settings.

Flower refuses keys that are not listed there, so all fields of `RunConfig` are, with their defaults.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import tomli_w

from fedpeft.config import RunConfig

HEADER = "[tool.flwr.app.config]\n"

OWN = {"output": "runs", "nodes": 1}
"""Settings of the app itself (`fedpeft.flower.settings.OWN_KEYS`)."""


def section() -> str:
    """The section, its header first."""
    settings = {name.replace("_", "-"): value for name, value in dataclasses.asdict(RunConfig()).items()}
    return HEADER + tomli_w.dumps(settings | OWN)


def replaced(text: str) -> str:
    """The text of a pyproject.toml with this section."""
    return re.sub(re.escape(HEADER) + r"(?:[^\[\n][^\n]*\n)*", lambda _: section(), text)


if __name__ == "__main__":
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "pyproject.toml")
    file.write_text(replaced(file.read_text(encoding="utf-8")), encoding="utf-8")
