"""fedpeft init: the project that it makes is whole, legal, and its own test runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedpeft.data.rows import load_dataset
from fedpeft.init.__main__ import STARTER, main
from fedpeft.parts import plugins
from fedpeft.wiring.config import read_config
from tests.refusals import has_error


@pytest.fixture
def project(tmp_path, capsys):
    folder = tmp_path / "my-project"
    assert main([str(folder)]) == 0
    assert f"next  cd {folder} && fedpeft simulate run.toml" in capsys.readouterr().out
    return folder


@pytest.mark.fast
def test_the_run_of_a_new_project_is_legal(project, monkeypatch):
    from fedpeft.parts.families import strategies

    monkeypatch.setattr(plugins, "_state", plugins._PluginState())
    monkeypatch.chdir(project)
    config = read_config(project / "run.toml")
    assert strategies.build(config.strategy).share == 0.5
    found = load_dataset(config.dataset)
    assert (len(found.train), len(found.test), found.label_names) == (270, 80, ("bad", "good"))
    assert len(set(found.train.owners)) == 6


@pytest.mark.fast
def test_what_to_do_next_is_one_word_a_path(tmp_path, capsys):
    assert main([str(tmp_path / "my project")]) == 0
    assert f"next  cd '{tmp_path}/my project' && fedpeft" in capsys.readouterr().out


@pytest.mark.fast
def test_nothing_is_written_over(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert has_error(capsys.readouterr().err, "FP5154")
    assert main([str(tmp_path / "mine")]) == 2
    assert main([str(tmp_path / "mine" / "below")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert main([str(tmp_path / ("long" * 100))]) == 2
    assert has_error(capsys.readouterr().err, "FP5153", "File name too long")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.fast
def test_the_starter_holds_nothing_but_its_files():
    tracked = {"README.md", "run.toml", "my_rules.py", "train.csv", "test.csv", "test_my_rules.py"}
    assert {p.name for p in STARTER.rglob("*") if p.is_file() and p.suffix != ".pyc"} == tracked


@pytest.mark.slow
def test_the_tests_of_a_new_project_pass(project):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
