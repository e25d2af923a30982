"""Every command of docs/survey.md works in a folder with the files of the repository and the runs that rows share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_documented_commands import ROOT, blocks
from tests.unit.test_survey import PAGE, Row, read_files, read_rows

ROWS = [row for row in read_rows() if row.command]


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    """Return the commands behind the page's variables, by name."""
    exports = [line.removeprefix("export ") for block in blocks(PAGE) for line in block if line.startswith("export ")]
    return {name: words.strip('"') for name, words in (line.split("=", 1) for line in exports)}


@pytest.fixture(scope="module")
def run(variables, tmp_path_factory):
    """Return a function that runs a command of the page in the folder, and gives its exit code and output."""
    folder = tmp_path_factory.mktemp("survey")
    for name in ("examples", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    for name, text in read_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run_line(command: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
        return done.returncode, done.stdout + done.stderr

    for line in (line for block in blocks(PAGE) for line in block if "--output" in line):
        code, said = run_line(line)
        assert code == 0, f"{line}\n{said}"
    return run_line


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_the_command_of_a_row_works(row: Row, run) -> None:
    code, said = run(row.command)
    assert code == 0, f"{row.command}\n{said}"
    assert "Traceback" not in said
