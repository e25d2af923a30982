"""Measurements: benchmarks (`python -m experiments.NAME`) and studies (a folder with a study.toml)."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedpeft.errors import FedpeftError


def measure_child_seconds() -> float:
    """Return the CPU seconds of all ended child processes and their descendants."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an expected error as one sentence and exit with code 2, as fedpeft's commands do."""
    try:
        yield
    except (FedpeftError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
