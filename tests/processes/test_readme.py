"""Every command and every line of Python in the README, and in the pages it leads to, does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_readme import NOTEBOOKS, ROOT, file_of, list_last_numbers


@pytest.mark.slow
def test_the_readme_s_own_rule_passes_the_conformance_suite(tmp_path):
    (tmp_path / "half_mean.py").write_text(file_of("own-parts.md", "half_mean.py"))
    command = [sys.executable, "-m", "fedpeft.conformance", "half_mean.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("book", NOTEBOOKS, ids=lambda book: book.stem)
def test_a_notebook_runs_from_top_to_bottom(book, tmp_path, monkeypatch):
    """In an empty folder, as its reader would; what a cell raises ends it."""
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    found = nbformat.read(book, as_version=4)
    client = nbclient.NotebookClient(found, timeout=1800, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    pictures = list_pictures(found)
    assert pictures == list_pictures(nbformat.read(book, as_version=4))
    assert pictures or book.stem == "study"
    assert min(list_last_numbers(found)) >= 3, "a gain over the probe, in percentage points"


def list_pictures(book):
    """Return the position of each cell that shows a picture, with the picture's kind."""
    return [
        (position, kind)
        for position, cell in enumerate(book.cells)
        for output in cell.get("outputs", ())
        for kind in sorted(output.get("data", {}))
        if kind.startswith("image/")
    ]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra docs, as .ci/run has it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api" / "index.html").is_file()
