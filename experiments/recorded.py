"""The recorded results of a study, for commands that make tables of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedpeft.errors import RunError
from fedpeft.study.results import Result, ResultsFile


def read_recorded(folder: Path, description: str | None) -> list[Result]:
    """Return the finished runs of the study in a folder, or of the preset that the command line names.

    Args:
        folder: the study's folder.
        description: the command's description.

    Raises:
        RunError: there are none. The message gives the command that makes them.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", default="", help="preset of the study; default: its default preset")
    preset = parser.parse_args().preset
    found = [result for result in ResultsFile(folder / preset / "results.jsonl").read() if result.is_finished]
    if not found:
        named = f" --preset {preset}" if preset else ""
        raise RunError(
            f"no finished run is recorded in {folder.name}/{preset}; fedpeft study "
            f"experiments/{folder.name}/study.toml{named} runs what is there, and --dry-run says what it would be"
        )
    return found
