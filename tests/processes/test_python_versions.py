"""Python 3.13, without torch: the whole code compiles, and what needs no library runs.

With torch, `python -m experiments.versions --python 3.13` runs the tests that use libraries.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cloudpickle
import pytest
import tomli_w

import fedpeft

ROOT = Path(fedpeft.__file__).parent.parent
PYTHON = shutil.which("python3.13")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PYTHON is None, reason="there is no Python 3.13 here")]
COMPILE = """
import pathlib, warnings
warnings.simplefilter("error")
for folder in ("fedpeft", "strategies", "clients", "experiments", "tests"):
    for file in pathlib.Path(folder).rglob("*.py"):
        compile(file.read_text(encoding="utf-8"), str(file), "exec")
"""
SETTINGS = """
from fedpeft.parts import families
from fedpeft.wiring.config import build_config
config = build_config({"cohort": "0.5", "strategy": "krum(attackers=0.3)"}, "a test")
print(config.to_toml().splitlines()[0], len(families.strategies.names) > 30, families.strategies.parse_text("fedit"))
"""


def run(*words, **variables):
    return subprocess.run([PYTHON, *words], cwd=ROOT, env=variables, capture_output=True, text=True)


def test_all_code_compiles_without_a_warning():
    assert run("-c", COMPILE).stderr == ""


def test_the_overview_of_commands_needs_no_package():
    assert run("-m", "fedpeft", "--version").stdout == f"fedpeft {fedpeft.__version__}\n"
    assert "  join " in run("-m", "fedpeft").stdout


def test_settings_are_read_and_checked(tmp_path):
    """Two packages of pure Python are borrowed from this environment."""
    for package in (cloudpickle, tomli_w):
        (tmp_path / package.__name__).symlink_to(Path(package.__file__).parent)
    done = run("-c", SETTINGS, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.stdout.startswith("clients = 100 True "), done.stderr
