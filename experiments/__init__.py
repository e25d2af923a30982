"""Measurements: benchmarks (`python -m experiments.NAME`) and studies (a folder with a study.toml)."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedpeft.errors import FedpeftError


def measure_child_seconds() -> float:
    """Of the processes that this one has started and waited for, and of those that they have waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def exit_on_error() -> Iterator[None]:
    """What the user can mend ends in one sentence and exit code 2, as in fedpeft's own commands."""
    try:
        yield
    except (FedpeftError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
