"""Recorded results: those of a study, for commands that make tables of them, and lines of other experiments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.errors import RunError
from fedpeft.study.results import Result, ResultsFile
from fedpeft.study.study_file import read_study


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
    file = read_study(folder / "study.toml", preset or None).folder / "results.jsonl"
    found = [result for result in ResultsFile(file).read() if result.is_finished]
    if not found:
        named = f" --preset {preset}" if preset else ""
        raise RunError(
            f"no finished run is recorded in {folder.name}/{preset}; fedpeft study "
            f"experiments/{folder.name}/study.toml{named} runs what is there, and --dry-run says what it would be"
        )
    return found


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file with one JSON object per run; none if there is no such file."""
    texts = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(text) for text in texts]


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    """Add the line of a finished run to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as sink:
        sink.write(json.dumps(line) + "\n")
