r"""Do two commits give the same results? `python -m experiments.golden COMMIT_A COMMIT_B`.

A commit is any name that git resolves, or a folder with a checkout (`.` is the working tree). Both run on this machine,
case by case, with the same interpreter and through their own commands (simulate, serve and join, certs). Each has one
thread, no GPU, its own empty cache, and the same kernel for frozen products. The contents of the run folders are
compared (`experiments.golden.outcome`). The exit code is 1 if a case differs by more than the tolerance, which is 0 by
default.

    python -m experiments.golden 5a23b78 HEAD
    python -m experiments.golden 5a23b78 . --only "strategy|real clients" --jobs 2
    python -m experiments.golden 5a23b78 HEAD --only "^fp32" --tolerance 1e-5      an order of sums has changed

Cases use today's flags; `experiments.golden.flags` translates them for commits with other flags. One thing is not
fixed, since no setting controls it: the number of clients per pass of the batched executor depends on the mean length
of the examples.

    python -m experiments.golden --write

writes the numbers that `tests/runs/test_golden.py` expects of fp64 runs. Results must not change, so use it for new
cases only; git shows whether it changed others.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from experiments import exit_on_error
from experiments.checkouts import check_out
from experiments.golden.cases import Case, list_cases
from experiments.golden.comparison import Measure, Verdict, compare
from experiments.golden.samples import write
from fedpeft.errors import ConfigError
from fedpeft.models.kernels import get_cpu_name


@dataclass(frozen=True)
class Settings:
    """The comparison to run."""

    commits: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """two commits, or folders with a checkout"""
    only: str = ""
    """only the cases whose names this regular expression finds"""
    tolerance: float = 0.0
    """the largest difference to accept, relative to a tensor's largest entry, or to a value"""
    ignore: str = ""
    """nothing whose name this regular expression finds: what is known to have changed"""
    jobs: int = 1
    """cases that are run at the same time"""
    keep: Path | None = None
    """a new folder for the runs, to look at; otherwise they are removed"""
    write: bool = False
    """make the numbers of tests/golden/runs anew, from the working tree; with --only, some of them"""


SHOWN = 12
"""Most differences of a case that are listed at the end."""


def choose_cases(only: str) -> list[Case]:
    """Return the cases whose names match a regular expression.

    Raises:
        ConfigError: no name matches.
    """
    cases = list_cases()
    found = [case for case in cases if re.search(only, case.name)]
    if not found:
        groups = ", ".join(dict.fromkeys(case.name.partition("/")[0] for case in cases))
        raise ConfigError(f"only={only!r} is in no case's name; names are GROUP/WHAT, and groups: {groups}")
    return found


def say(verdict: Verdict, seconds: float) -> None:
    """Print a line of the table."""
    print(f"{verdict.case.name:<42} {verdict.text} ({seconds:.1f} s)", flush=True)


def main(settings: Settings) -> int:
    """Run the command, and return 1 if a case differs.

    Raises:
        ConfigError: a setting is illegal.
    """
    if settings.write:
        write(settings.only)
        return 0
    if len(settings.commits) != 2:
        raise ConfigError(f"{len(settings.commits)} commits were given; name two: python -m experiments.golden A B")
    if settings.tolerance < 0 or settings.jobs < 1:
        raise ConfigError("tolerance must be at least 0, and jobs at least 1")
    if settings.keep is not None and settings.keep.exists():
        raise ConfigError(f"{settings.keep} exists; give a new folder to --keep")
    for name, pattern in (("only", settings.only), ("ignore", settings.ignore)):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{name}={pattern!r} is no regular expression: {error}") from None
    measure = Measure(settings.tolerance, settings.ignore)
    started, cases = time.perf_counter(), choose_cases(settings.only)
    with tempfile.TemporaryDirectory() as temporary:
        work = (settings.keep or Path(temporary) / "golden").absolute()
        one, other = (check_out(name, work / f"source-{s}") for name, s in zip(settings.commits, "ab", strict=True))
        verdicts = compare(cases, (one, other), work, measure, settings.jobs, say)
    differing = [verdict for verdict in verdicts if not verdict.same]
    print(
        f"\n{len(verdicts)} cases, {len(differing)} differ by more than {settings.tolerance:g}; "
        f"{get_cpu_name()}, torch {torch.__version__}, {time.perf_counter() - started:.0f} s"
    )
    for verdict in differing:
        print(f"{verdict.case.name}: {verdict.text}")
        for difference in verdict.beyond[:SHOWN]:
            print(f"    {difference}")
    return int(bool(differing))


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(tyro.cli(Settings, description=__doc__)))
