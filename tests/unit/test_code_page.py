"""docs/code.md cites commits that added parts, with their numbers of files: checked against the history, if present."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("fedpeft", "strategies", "clients")

ROW = re.compile(r"^ +(?P<new>\d+) +(?P<changed>\d+)  (?P<subject>\S.*)$", re.MULTILINE)
CITED = [found.groupdict() for found in ROW.finditer((ROOT / "docs/code.md").read_text())]


def run_git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def commits():
    """Find the commits by subject, the oldest of each."""
    try:
        lines = run_git("log", "--format=%H %s")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    found = {subject: commit for commit, _, subject in (line.partition(" ") for line in lines)}
    if not any(row["subject"] in found for row in CITED):
        pytest.skip("the history is not present")
    return found


def test_the_page_cites_commits():
    assert len(CITED) >= 4


@pytest.mark.parametrize("row", CITED, ids=lambda row: row["subject"])
def test_a_cited_commit_touches_as_many_files(row, commits):
    lines = run_git("show", "--format=", "--name-status", commits[row["subject"]], "--", *PRODUCT)
    kinds = [line[0] for line in lines]
    assert (kinds.count("A"), kinds.count("M")) == (int(row["new"]), int(row["changed"]))
    assert len(kinds) == kinds.count("A") + kinds.count("M"), "the page counts new and changed files only"
