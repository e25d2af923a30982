"""Every command and every line of Python in the README does what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft import plugins
from fedpeft.models.base_model import resolve_model
from fedpeft.simulate import main, parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line and not line.startswith("#")]
SIMULATIONS = [c for c in COMMANDS if c.startswith("python -m fedpeft.simulate") and "--help" not in c]
OTHERS = [c for c in COMMANDS if c.startswith("python -m") and c not in SIMULATIONS and "pytest" not in c]


def test_the_first_command_is_the_main_job():
    assert COMMANDS[:2] == ["pip install -e .", "python -m fedpeft.simulate --clients 100"]


@pytest.mark.parametrize("command", SIMULATIONS)
def test_a_simulation_of_the_readme_has_legal_settings(command, tmp_path, monkeypatch):
    """Flags and parts are checked here; what they do is tested on small data elsewhere."""
    from fedpeft.aggregation.strategy import strategies
    from fedpeft.communication.uplink import parse_uplink
    from fedpeft.data.rows import DATASETS
    from fedpeft.peft.family import PEFT_METHODS
    from fedpeft.run.catalogue import built

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_state", plugins._State())
    (tmp_path / "my_rules.py").write_text(blocks("python")[2])
    config = parse(shlex.split(command)[3:])[0]
    built(config, "partition")
    PEFT_METHODS.build(config.peft)
    strategies.build(config.strategy)
    parse_uplink(config.codec)
    DATASETS.build(config.dataset)


@pytest.mark.parametrize("command", OTHERS)
def test_another_command_of_the_readme_exists(command):
    words = [w for w in shlex.split(command) if not w.startswith("-") or w == "-m"]
    shown = subprocess.run(
        [sys.executable, *words[1:3], "--help"],
        cwd=ROOT,
        env={**os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert not shown.stderr
    for flag in re.findall(r"--[a-z-]+", command):
        assert flag in shown.stdout


def test_the_python_of_the_readme_answers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--dataset", "tiny", "--clients", "4", "--cohort", "2", "--rounds", "1", "--dtype", "fp32",
                 "--workers", "1", "--output", "RUN"]) == 0  # fmt: skip
    shutil.copytree(resolve_model("tiny"), "BASE")
    code = blocks("python")[0]
    capsys.readouterr()
    exec(code, {})
    from fedpeft.data.rows import load_dataset

    assert capsys.readouterr().out.strip() in (load_dataset("tiny").label_names or ())


def test_a_run_from_python_is_what_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks("python")[1], names)
    assert names["run"].adapter.is_dir()
    assert list(names["run"].rounds["round"]) == [0, 1, 2]


@pytest.mark.slow
def test_the_readme_s_own_rule_passes_the_conformance_suite(tmp_path):
    (tmp_path / "my_rules.py").write_text(blocks("python")[2])
    command = [sys.executable, "-m", "fedpeft.conformance", "my_rules.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_that_the_readme_names_exist():
    for path in re.findall(r"`((?:fedpeft|strategies|clients|experiments|docs)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path
