"""The frame of every command: what is said, where, and with which exit code."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest

import fedpeft
from fedpeft import __main__
from fedpeft.errors import ConfigError
from fedpeft.run.command import exit_code, one_press_a_second
from tests.refusals import has_error

PACKAGE = Path(fedpeft.__file__).parent
COMMANDS = {  # one mistake that each finds without a run
    "simulate": ["--clients", "0.5"],
    "check": ["no.csv"],
    "init": ["."],
    "serve": ["--listen", "nowhere"],
    "join": ["--server", "nowhere", "--data", "no.csv"],
    "study": ["no.toml"],
    "report": ["nowhere"],
    "export": ["nowhere"],
    "predict": ["nowhere"],
    "describe": ["nothing"],
    "certs": ["--server", "no host"],
    "audit.__main__": [],
    "transcript": ["no", "nothing"],
    "conformance.__main__": ["no.py"],
}


def raises(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_work_s_answer_is_the_exit_code(answer, code):
    assert exit_code(lambda: answer) == code


def test_a_mistake_is_one_unwrapped_sentence_on_the_error_stream(capsys):
    assert exit_code(raises(ConfigError("[given] " + "long " * 60 + "end"))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: [given] ")
    assert err.endswith("end\n")
    assert err.count("\n") == 1


def test_two_quick_presses_of_ctrl_c_are_one_interruption(monkeypatch):
    now = iter((10.0, 10.5, 11.0, 11.2))
    monkeypatch.setattr("fedpeft.run.command.time.monotonic", lambda: next(now))
    press = one_press_a_second()
    for interrupts in (True, False, True, False):
        with pytest.raises(KeyboardInterrupt) if interrupts else nullcontext():
            press(signal.SIGINT, None)


GOES_ON_LATER = """
import os, signal, sys, time
from fedpeft.run.command import exit_code, interruptible

def work():
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in background jobs
with interruptible():
    code = exit_code(work, lambda: "the same command continues")
os.kill(os.getpid(), int(sys.argv[1]))
sys.exit(code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_command_in_order_and_its_end_not_at_all(number):
    ended = subprocess.run(
        [sys.executable, "-c", GOES_ON_LATER, str(int(number))],
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (130, "the same command continues", "")


def test_ctrl_c_says_how_to_go_on(capsys):
    assert exit_code(raises(KeyboardInterrupt()), lambda: "continue with: " + "x" * 200) == 130
    assert capsys.readouterr().out == "\ncontinue with: " + "x" * 200 + "\n"


def test_what_is_nobody_s_mistake_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_of_any_command_is_an_error_and_exit_code_2(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert importlib.import_module(f"fedpeft.{name}").main(COMMANDS[name]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_ends_any_command_with_130(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = importlib.import_module(f"fedpeft.{name}")
    monkeypatch.setattr(command.tyro, "cli", lambda *_, **__: raises(KeyboardInterrupt())())
    assert command.main([]) == 130


def ran(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "fedpeft", *words], capture_output=True, text=True, check=False, **more
    )


def test_one_name_lists_every_command():
    found = {path.stem for path in PACKAGE.glob("*.py") if "def main(" in path.read_text(encoding="utf-8")}
    found |= {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert set(__main__.COMMANDS) == found - {"__main__"}
    shown = ran().stdout
    assert all(f"  {name} " in shown for name in __main__.COMMANDS)


def test_the_version_is_told_without_loading_anything_heavy():
    assert ran("--version").stdout == f"fedpeft {fedpeft.__version__}\n"
    probe = "import sys, fedpeft.__main__; print([m for m in ('torch', 'numpy', 'rich', 'tyro') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout == "[]\n"
    told = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert told["project"]["version"] == fedpeft.__version__
    assert told["project"]["scripts"] == {"fedpeft": "fedpeft.__main__:main"}
    assert f"version: {fedpeft.__version__}" in (PACKAGE.parent / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {fedpeft.__version__}" in (PACKAGE.parent / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_command_by_its_name_is_the_module(tmp_path):
    (tmp_path / "something").touch()
    done = ran("init", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not empty" in done.stderr
    done = ran("simulat")
    assert done.returncode == 2
    assert has_error(done.stderr, "FP1011", "'simulat'", "did you mean 'simulate'?")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_reads_any_more(unbuffered):
    """As of `simulate --help | head -1`: no traceback, and what a shell says of it."""
    read, write = os.pipe()
    os.close(read)
    command, env = [sys.executable, "-m", "fedpeft.simulate", "--help"], os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=env)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_broken_pipe_that_is_not_the_output_s_is_not_hidden():
    code = "from fedpeft.run.command import exit_code\ndef work(): raise BrokenPipeError\nexit_code(work)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BrokenPipeError" in done.stderr
