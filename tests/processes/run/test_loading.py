"""Ctrl-C and SIGTERM while a command loads its libraries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fedpeft
from fedpeft import __main__
from fedpeft.machine import startup
from fedpeft.reporting.command import handle_interrupts, run_command

ROOT = Path(fedpeft.__file__).parent.parent
INTERRUPTS = "import os, sys, time\nos.kill(os.getpid(), int(os.environ['NUMBER']))\ntime.sleep(0.1)\nsys.exit(3)\n"
BY_NAME = "import sys\nfrom fedpeft.__main__ import main\nsys.argv = ['fedpeft', 'study']\nmain()"


def ended(folder: Path, number: signal.Signals, *words: str, ignored: bool = False) -> subprocess.CompletedProcess[str]:
    """How Python ends that is interrupted where it imports tyro, which every command does."""
    (folder / "tyro.py").write_text(INTERRUPTS, encoding="utf-8")
    places = {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), "NUMBER": str(int(number))}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | places,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )


@pytest.mark.medium
@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_ctrl_c_while_any_command_loads_is_one_line(name, tmp_path):
    done = ended(tmp_path, signal.SIGINT, "-m", __main__.find_module(name).removesuffix(".__main__"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "\ninterrupted\n", "")


@pytest.mark.medium
@pytest.mark.parametrize("words", [("-m", "fedpeft.study"), ("-m", "fedpeft", "study"), ("-c", BY_NAME)])
def test_sigterm_is_one_too_however_a_command_is_called(words, tmp_path):
    done = ended(tmp_path, signal.SIGTERM, *words)
    assert (done.returncode, done.stdout, done.stderr) == (130, "\ninterrupted\n", "")


@pytest.mark.medium
def test_a_script_of_one_s_own_is_interrupted_as_python_does_it(tmp_path):
    (tmp_path / "own.py").write_text("import fedpeft.reporting.command\nimport tyro", encoding="utf-8")
    done = ended(tmp_path, signal.SIGINT, "-m", "own")
    assert done.stderr.endswith("KeyboardInterrupt\n")


@pytest.mark.medium
def test_a_job_in_the_background_still_ignores_ctrl_c(tmp_path):
    assert ended(tmp_path, signal.SIGINT, "-m", "fedpeft.study", ignored=True).returncode == 3


@pytest.mark.fast
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_has_begun_says_itself_how_it_ends(number, capsys):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        startup.handle_signals()
        with handle_interrupts():
            assert run_command(lambda: signal.raise_signal(number), lambda: "continue so") == 130
        signal.signal(signal.SIGINT, signal.default_int_handler)
        startup.handle_signals()
        assert run_command(lambda: signal.getsignal(signal.SIGINT) is not signal.default_int_handler) == 0
    finally:
        for changed, what in before.items():
            signal.signal(changed, what)
    assert capsys.readouterr().out == "\ncontinue so\n"
