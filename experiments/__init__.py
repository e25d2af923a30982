"""Measurements: benchmarks (`python -m experiments.NAME`) and studies (a folder with a study.toml)."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpeft.errors import FedpeftError, RunError


def measure_child_seconds() -> float:
    """Return the CPU seconds of all ended child processes and their descendants."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_between(file: Path, begin: str, end: str, text: str) -> None:
    """Replace the text between two marks of a file, which a command has made.

    Raises:
        RunError: the file lacks a mark; the file stays as it is.
    """
    before, _, rest = file.read_text(encoding="utf-8").partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise RunError(f"{file} has no text between {begin} and {end}; add both lines where the text belongs")
    file.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an expected error as one sentence and exit with code 2, as fedpeft's commands do."""
    try:
        yield
    except (FedpeftError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
