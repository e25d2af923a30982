"""Measurements: benchmarks (`python -m experiments.NAME`) and studies (a folder with a study.toml)."""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
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


def update_page(
    arguments: Sequence[str] | None, about: str | None, page: Path, marks: tuple[str, str], make: Callable[[], str]
) -> int:
    """Run a command that compares the text between a page's marks with what `make` returns, or writes it.

    Args:
        arguments: the command line; None: that of the process. `--write` writes the page.
        about: the command's description.
        page: the page.
        marks: lines before and after the text.
        make: returns the text.

    Returns:
        1 if the page differs and is not written, otherwise 0.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page")
    options = parser.parse_args(arguments)
    begin, end = marks
    before = page.read_text(encoding="utf-8")
    after = before[: before.index(begin)] + f"{begin}\n{make()}\n{end}" + before[before.index(end) + len(end) :]
    if options.write:
        page.write_text(after, encoding="utf-8")
    print("as it is" if after == before else "written" if options.write else f"docs/{page.name} differs")
    return int(after != before and not options.write)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an expected error as one sentence and exit with code 2, as fedpeft's commands do."""
    try:
        yield
    except (FedpeftError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
