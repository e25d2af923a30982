"""fedpeft init FOLDER: a project to begin with."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fedpeft.errors import RunError
from fedpeft.machine.files import raise_write_errors
from fedpeft.machine.terminal import Console
from fedpeft.reporting.command import run_tool, start_command

STARTER = Path(__file__).parent / "starter"
"""The project, as it stands in a new folder."""


@dataclass(frozen=True)
class Command:
    """Make a project: example data, a run, a strategy of your own, and a test that runs.

    fedpeft init my-project
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER", help="new, or empty")]


def make(folder: Path) -> list[Path]:
    """Create the project; return the created files, relative to `folder`.

    Raises:
        RunError: there is something in its place, or it can't be written.
    """
    try:
        taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise RunError(f"FP5153 {folder} can't be made: {error.strerror}; name another folder") from None
    if taken:
        raise RunError(f"FP5154 {folder} exists and is not empty; name a folder that is not there yet")
    files = sorted(p.relative_to(STARTER) for p in STARTER.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    with raise_write_errors(folder):
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(STARTER / file, folder / file)
    return files


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 2 for a user's mistake."""
    return run_tool(Command, _make_project, arguments, silent=False)


def _make_project(command: Command, console: Console) -> None:
    files = make(command.folder)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"made  {command.folder}: {', '.join(map(str, files))}")
    say(f"next  cd {shlex.quote(str(command.folder))} && fedpeft simulate run.toml")


if __name__ == "__main__":
    start_command("init.__main__")
