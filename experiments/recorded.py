"""What a study has recorded so far, for the commands that make tables of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedpeft.errors import RunError
from fedpeft.studies.results import Result, ResultsFile


def read_recorded(folder: Path, description: str | None) -> list[Result]:
    """The finished runs of the study in a folder, or of the one of its presets that the command line names.

    Args:
        folder: of the study.
        description: of the command.

    Raises:
        RunError: there are none; what runs them is named.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", default="", help="of the study, where it is not the one that it runs by default")
    preset = parser.parse_args().preset
    found = [result for result in ResultsFile(folder / preset / "results.jsonl").read() if result.is_finished]
    if not found:
        named = f" --preset {preset}" if preset else ""
        raise RunError(
            f"no finished run is recorded in {folder.name}/{preset}; python -m fedpeft.study "
            f"experiments/{folder.name}/study.toml{named} runs what is there, and --dry-run says what it would be"
        )
    return found
