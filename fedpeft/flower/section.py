"""python -m fedpeft.flower.section [FILE]: the section of pyproject.toml that lists the Flower app's settings.

Flower refuses keys that are not listed there, so all fields of `RunConfig` are, with their defaults.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import tomli_w

from fedpeft.errors import ConfigError
from fedpeft.machine.files import raise_write_errors, replace
from fedpeft.reporting.command import run_command
from fedpeft.wiring.config import RunConfig

HEADER = "[tool.flwr.app.config]\n"

OWN = {"output": "runs", "nodes": 1}
"""Settings of the app itself (`fedpeft.flower.settings.OWN_KEYS`)."""


def format_section() -> str:
    """Return the section, with its header first."""
    settings = {name.replace("_", "-"): value for name, value in dataclasses.asdict(RunConfig()).items()}
    return HEADER + tomli_w.dumps(settings | OWN)


def replace_section(text: str) -> str:
    """Return the text of a pyproject.toml with this section."""
    return re.sub(re.escape(HEADER) + r"(?:[^\[\n][^\n]*\n)*", lambda _: format_section(), text)


def renew(file: Path) -> None:
    """Update the section of a pyproject.toml.

    Raises:
        ConfigError: the file can't be read, or has no such section.
        RunError: it can't be written.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"FP1176 {file} can't be read ({error}); give the pyproject.toml of a Flower app") from None
    if HEADER not in text:
        raise ConfigError(
            f"FP1177 {file} has no section {HEADER.strip()}, which this command updates; add that line to the file"
        )
    with raise_write_errors(file):
        replace(file, replace_section(text).encode())


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    named = (sys.argv[1:] if arguments is None else arguments) or ["pyproject.toml"]
    return run_command(lambda: renew(Path(named[0])))


if __name__ == "__main__":
    sys.exit(main())
