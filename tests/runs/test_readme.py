"""Every command and every line of Python in the README, and in the pages it leads to, does what it says."""

from __future__ import annotations

import shutil

from fedpeft.models.base_model import resolve_model
from fedpeft.simulate import main
from tests.unit.test_readme import python_of


def test_the_python_of_the_readme_answers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--dataset", "tiny", "--clients", "4", "--cohort", "2", "--rounds", "1", "--dtype", "fp32",
                 "--workers", "1", "--output", "RUN"]) == 0  # fmt: skip
    shutil.copytree(resolve_model("tiny"), "BASE")
    code = python_of("files.md")
    capsys.readouterr()
    exec(code, {})
    from fedpeft.data.rows import load_dataset

    assert capsys.readouterr().out.strip() in (load_dataset("tiny").label_names or ())


def test_a_run_from_python_is_what_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(python_of("python.md"), names)
    assert names["run"].adapter.is_dir()
    assert list(names["run"].history["round"]) == [0, 1, 2]
