"""The limit of what frozen layers give of rows: the least recently used goes first, and never what is in use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fedpeft.machine import activation_cache_limit
from fedpeft.machine.activation_cache_limit import VARIABLE, make_room
from tests.refusals import refuses
from tests.unit.machine.test_kept_states import store


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch):
    held = {}
    monkeypatch.setattr(activation_cache_limit, "_held", held)
    monkeypatch.setattr(activation_cache_limit, "_going_on", [])
    yield held
    for lock in held.values():
        os.close(lock)


@pytest.mark.medium
def test_what_another_process_uses_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.000003")
    used, idle = store(tmp_path, "a", 1000, 100), store(tmp_path, "b", 1000, 200)
    code = (
        "import sys; from pathlib import Path; from fedpeft.machine.activation_cache_limit import hold\n"
        "hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(used)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        os.utime(tmp_path / "frozen-a.use", (100, 100))
        make_room(tmp_path / "frozen-new", 1500)
        assert used.exists()
        assert not idle.exists()
        with refuses("FP2027", VARIABLE):
            make_room(tmp_path / "frozen-new", 2500)
        process.stdin.close()
        process.wait()
    make_room(tmp_path / "frozen-new", 2500)
    assert not used.exists()
