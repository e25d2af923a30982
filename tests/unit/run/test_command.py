"""The frame of every command: what is said, where, and with which exit code."""

from __future__ import annotations

import importlib
import signal
from contextlib import nullcontext

import pytest

from fedpeft.errors import ConfigError
from fedpeft.reporting.command import create_interrupt_handler, run_command

COMMANDS = {  # one mistake that each finds without a run
    "fedpeft.simulate": ["--clients", "0.5"],
    "fedpeft.commands.check": ["no.csv"],
    "fedpeft.init.__main__": ["."],
    "fedpeft.serve": ["--listen", "nowhere"],
    "fedpeft.join": ["--server", "nowhere", "--data", "no.csv"],
    "fedpeft.study.__main__": ["no.toml"],
    "fedpeft.commands.report": ["nowhere"],
    "fedpeft.commands.export": ["nowhere"],
    "fedpeft.commands.predict": ["nowhere"],
    "fedpeft.commands.describe": ["nothing"],
    "fedpeft.commands.certs": ["--server", "no host"],
    "fedpeft.audit.__main__": [],
    "fedpeft.commands.transcript": ["no", "nothing"],
    "fedpeft.conformance.__main__": ["no.py"],
}


def raises(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_work_s_answer_is_the_exit_code(answer, code):
    assert run_command(lambda: answer) == code


def test_a_mistake_is_one_unwrapped_sentence_on_the_error_stream(capsys):
    assert run_command(raises(ConfigError("[given] " + "long " * 60 + "end"))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: FP1000 [given] ")
    assert err.endswith("end\n")
    assert err.count("\n") == 1


def test_two_quick_presses_of_ctrl_c_are_one_interruption(monkeypatch):
    now = iter((10.0, 10.5, 11.0, 11.2))
    monkeypatch.setattr("fedpeft.reporting.command.time.monotonic", lambda: next(now))
    press = create_interrupt_handler()
    for interrupts in (True, False, True, False):
        with pytest.raises(KeyboardInterrupt) if interrupts else nullcontext():
            press(signal.SIGINT, None)


def test_ctrl_c_says_how_to_go_on(capsys):
    assert run_command(raises(KeyboardInterrupt()), lambda: "continue with: " + "x" * 200) == 130
    assert capsys.readouterr().out == "\ncontinue with: " + "x" * 200 + "\n"


def test_what_is_nobody_s_mistake_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_of_any_command_is_an_error_and_exit_code_2(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert importlib.import_module(name).main(COMMANDS[name]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_ends_any_command_with_130(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = importlib.import_module(name)
    monkeypatch.setattr(command.tyro, "cli", lambda *_, **__: raises(KeyboardInterrupt())())
    assert command.main([]) == 130
