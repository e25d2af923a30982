"""Measurements: benchmarks (`python -m experiments.NAME`) and studies (a folder with a study.toml)."""

from __future__ import annotations

import argparse
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    return update_files(arguments, about, lambda: {page: insert_part(page, marks, make())})


def insert_part(page: Path, marks: tuple[str, str], text: str) -> str:
    """Return a page's content with this text between its marks; the file stays as it is."""
    begin, end = marks
    before = page.read_text(encoding="utf-8")
    return before[: before.index(begin)] + f"{begin}\n{text}\n{end}" + before[before.index(end) + len(end) :]


def update_files(arguments: Sequence[str] | None, about: str | None, make: Callable[[], Mapping[Path, str]]) -> int:
    """Run a command that compares files with the contents that `make` returns, or writes them.

    Two figures are equal if they contain the same texts, since other versions of matplotlib draw other paths.

    Args:
        arguments: the command line; None: that of the process. `--write` writes the files.
        about: the command's description.
        make: returns the contents by file.

    Returns:
        1 if a file differs and is not written, otherwise 0.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page")
    options = parser.parse_args(arguments)
    differ = []
    for file, content in make().items():
        before = file.read_text(encoding="utf-8") if file.exists() else None
        if before is None or _read_texts(file, before) != _read_texts(file, content):
            differ.append(file)
            if options.write:
                file.write_text(content, encoding="utf-8")
    word = "written" if options.write else "differs"
    print("\n".join(f"{word}: {file.parent.name}/{file.name}" for file in differ) or "as it is")
    return int(bool(differ) and not options.write)


def _read_texts(file: Path, content: str) -> str | list[str]:
    return re.findall(r"<!-- (.*?) -->", content) if file.suffix == ".svg" else content


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an expected error as one sentence and exit with code 2, as fedpeft's commands do."""
    try:
        yield
    except (FedpeftError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
