"""The limit of what frozen layers give of rows: the least recently used goes first, and never what is in use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fedpeft.errors import AssetError, ConfigError
from fedpeft.machine import kept_states
from fedpeft.machine.kept_states import VARIABLE, hold, make_room


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch):
    held = {}
    monkeypatch.setattr(kept_states, "_held", held)
    yield held
    for lock in held.values():
        os.close(lock)


def store(cache, name, size, used):
    folder = cache / f"frozen-{name}"
    folder.mkdir()
    (folder / "hidden.bin").write_bytes(bytes(size))
    use = cache / f"frozen-{name}.use"
    use.touch()
    os.utime(use, (used, used))
    return folder


def test_the_least_recently_used_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.000003")
    second, first, third = (store(tmp_path, name, 1000, used) for name, used in (("b", 200), ("a", 100), ("c", 300)))
    make_room(tmp_path / "frozen-new", 1500)
    assert (first.exists(), second.exists(), third.exists()) == (False, False, True)


def test_what_there_is_room_for_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.000003")
    kept = store(tmp_path, "a", 1000, 100)
    make_room(tmp_path / "frozen-new", 2000)
    assert kept.exists()


def test_nothing_goes_for_what_is_larger_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.000003")
    kept = store(tmp_path, "a", 1000, 100)
    with pytest.raises(AssetError, match=rf"more than .* set {VARIABLE}"):
        make_room(tmp_path / "frozen-new", 3001)
    assert kept.exists()


def test_what_another_process_uses_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.000003")
    used, idle = store(tmp_path, "a", 1000, 100), store(tmp_path, "b", 1000, 200)
    code = (
        "import sys; from pathlib import Path; from fedpeft.machine.kept_states import hold\n"
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
        with pytest.raises(AssetError, match=rf"needs 0.00 GB, and runs that are going on use .* set {VARIABLE}"):
            make_room(tmp_path / "frozen-new", 2500)
        process.stdin.close()
        process.wait()
    make_room(tmp_path / "frozen-new", 2500)
    assert not used.exists()


def test_a_removal_that_is_cut_off_leaves_no_store_that_passes_for_whole(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.000001")
    cut = store(tmp_path, "a", 1000, 100)
    (cut / "tiles.done").write_bytes(b"\x01")

    def killed(folder):
        (folder / "hidden.bin").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(kept_states.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        make_room(tmp_path / "frozen-new", 500)
    assert not (cut / "tiles.done").exists()


def test_using_a_store_makes_it_the_last_to_go(tmp_path, monkeypatch, nothing_held):
    monkeypatch.setenv(VARIABLE, "0.000003")
    first, second = store(tmp_path, "a", 1000, 100), store(tmp_path, "b", 1000, 200)
    hold(first)
    for lock in nothing_held.values():
        os.close(lock)
    nothing_held.clear()
    make_room(tmp_path / "frozen-new", 1500)
    assert first.exists()
    assert not second.exists()


def test_without_the_variable_half_of_what_is_free_is_the_limit(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    free = kept_states.shutil.disk_usage(tmp_path).free
    make_room(tmp_path / "frozen-new", free // 4)
    with pytest.raises(AssetError, match=VARIABLE):
        make_room(tmp_path / "frozen-new", free)


@pytest.mark.parametrize("given", ["much", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_one_sentence(tmp_path, monkeypatch, given):
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(ConfigError, match=f"{VARIABLE} must be a number of gigabytes above 0"):
        make_room(tmp_path / "frozen-new", 1)
