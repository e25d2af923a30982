"""Both ends of the ranges of dependencies: what the ends are, and what is shown of them."""

from __future__ import annotations

import runpy

from experiments.versions.__main__ import format_table, main
from experiments.versions.ends import ROOT, VersionEnd, list_requirements, parse_versions, select_own_versions

CORE = runpy.run_path(str(ROOT / ".ci" / "lock.py"))["read_dependencies"]()
RESOLVED = "cloudpickle==3.0.0\nHuggingface_Hub[cli]==1.0.0\nidna==3.10\n"


def test_our_own_requirements_are_told_from_those_that_they_bring():
    assert parse_versions(RESOLVED) == {"cloudpickle": "3.0.0", "huggingface-hub": "1.0.0", "idna": "3.10"}
    assert select_own_versions(RESOLVED) == {"cloudpickle": "3.0.0", "huggingface-hub": "1.0.0"}
    assert len(list_requirements()) == len(CORE)


def test_the_table_has_a_line_for_each_requirement_and_for_the_tests():
    shown = format_table(
        [
            VersionEnd("lowest", "3.11", select_own_versions(RESOLVED), "9 passed"),
            VersionEnd("newest", "3.11", {}, "1 failed, 8 passed"),
        ]
    )
    assert "| cloudpickle | 3.0.0 |  |" in shown
    assert "| tests | 9 passed | 1 failed, 8 passed |" in shown
    assert len(shown.splitlines()) == 2 + len(CORE) + 1


def test_tests_that_fail_are_the_exit_code(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("experiments.versions.__main__.RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(
        "experiments.versions.__main__.try_end",
        lambda name, python, *_: VersionEnd(name, python, {}, "1 failed, 8 passed"),
    )
    assert main(["--only", "lowest"]) == 1
    assert "1 failed" in capsys.readouterr().out
    assert '"end": "lowest"' in (tmp_path / "results.jsonl").read_text()
