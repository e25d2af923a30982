"""The frame of every command: what is said, where, and with which exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedpeft
from fedpeft import __main__
from tests.refusals import has_error

PACKAGE = Path(fedpeft.__file__).parent


GOES_ON_LATER = """
import os, signal, sys, time
from fedpeft.reporting.command import run_command, handle_interrupts

def work():
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in background jobs
with handle_interrupts():
    code = run_command(work, lambda: "the same command continues")
os.kill(os.getpid(), int(sys.argv[1]))
sys.exit(code)
"""


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_command_in_order_and_its_end_not_at_all(number):
    ended = subprocess.run(
        [sys.executable, "-c", GOES_ON_LATER, str(int(number))],
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (130, "the same command continues", "")


def ran(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "fedpeft", *words], capture_output=True, text=True, check=False, **more
    )


@pytest.mark.medium
def test_one_name_lists_every_command():
    modules = [*PACKAGE.glob("*.py"), *(PACKAGE / "commands").glob("*.py")]
    found = {path.stem for path in modules if "def main(" in path.read_text(encoding="utf-8")}
    found |= {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert set(__main__.COMMANDS) == found - {"__main__"}
    shown = ran().stdout
    assert all(f"  {name} " in shown for name in __main__.COMMANDS)


@pytest.mark.medium
def test_the_version_is_told_without_loading_anything_heavy():
    assert ran("--version").stdout == f"fedpeft {fedpeft.__version__}\n"
    probe = "import sys, fedpeft.__main__; print([m for m in ('torch', 'numpy', 'rich', 'tyro') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "[]\n"
    told = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert told["project"]["version"] == fedpeft.__version__
    assert told["project"]["scripts"] == {"fedpeft": "fedpeft.__main__:main"}
    assert f"version: {fedpeft.__version__}" in (PACKAGE.parent / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {fedpeft.__version__}" in (PACKAGE.parent / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.medium
def test_a_command_by_its_name_is_the_module(tmp_path):
    (tmp_path / "something").touch()
    done = ran("init", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not empty" in done.stderr
    done = ran("simulat")
    assert done.returncode == 2
    assert has_error(done.stderr, "FP1011", "'simulat'", "did you mean 'simulate'?")


@pytest.mark.medium
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reads_any_more(unbuffered):
    """As of `simulate --help | head -1`: no traceback, and what a shell says of it."""
    read, write = os.pipe()
    os.close(read)
    command, env = [sys.executable, "-m", "fedpeft.simulate", "--help"], os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=env)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.medium
def test_a_broken_pipe_that_is_not_the_output_s_is_not_hidden():
    code = "from fedpeft.reporting.command import run_command\ndef work(): raise BrokenPipeError\nrun_command(work)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BrokenPipeError" in done.stderr
