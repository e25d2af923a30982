"""The limit of what frozen layers give of rows: the least recently used goes first, and never what is in use."""

from __future__ import annotations

import gc
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpeft.data.examples import TokenRows
from fedpeft.machine import activation_cache_limit
from fedpeft.machine.activation_cache_limit import VARIABLE, hold, keep_states, make_room
from fedpeft.models.frozen_blocks import ActivationCache
from tests.refusals import refuses


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch):
    held = {}
    monkeypatch.setattr(activation_cache_limit, "_held", held)
    monkeypatch.setattr(activation_cache_limit, "_going_on", [])
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


def frozen(folder):
    rows = TokenRows(np.array([1, 2], dtype=np.int32), np.array([0, 2]), None, 0)
    return ActivationCache(folder, rows, 1, 2, torch.float32)


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
    with refuses("FP2026", VARIABLE):
        make_room(tmp_path / "frozen-new", 3001)
    assert kept.exists()


def test_a_removal_that_is_cut_off_leaves_no_store_that_passes_for_whole(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.000001")
    cut = store(tmp_path, "a", 1000, 100)
    (cut / "tiles.done").write_bytes(b"\x01")

    def killed(folder):
        (folder / "hidden.bin").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(activation_cache_limit.shutil, "rmtree", killed)
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


def test_a_run_that_has_ended_holds_nothing_though_its_process_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.000003")
    before, ended = store(tmp_path, "a", 1000, 100), store(tmp_path, "b", 1000, 200)
    hold(before)
    with keep_states():
        with keep_states():  # another run beside it
            hold(before)
            hold(ended)
        with refuses("FP2027"):
            make_room(tmp_path / "frozen-new", 1500)
        assert ended.exists()
    make_room(tmp_path / "frozen-new", 1500)
    assert (before.exists(), ended.exists()) == (True, False)


def test_a_run_that_fails_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.000003")
    failed = store(tmp_path, "a", 1000, 100)
    with suppress(RuntimeError), keep_states():
        hold(failed)
        raise RuntimeError
    make_room(tmp_path / "frozen-new", 2500)
    assert not failed.exists()


@pytest.fixture
def shared():
    """Yield a cache of several users, with another user's store and notes, for a user who is not root."""
    with tempfile.TemporaryDirectory() as place:
        cache, root = Path(place), os.geteuid() == 0
        cache.chmod(0o777)
        theirs = store(cache, "theirs", 1000, 100)
        shut = [theirs, cache / "frozen-theirs.use", cache / "kept_states.lock", cache / "kept_states-0.lock"]
        for path in shut:
            path.touch()
            path.chmod(0)
        if root:
            os.seteuid(65534)
        try:
            yield cache, theirs
        finally:
            if root:
                os.seteuid(0)
            theirs.chmod(0o700)


def test_what_is_another_user_s_is_neither_counted_nor_removed(shared, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.000003")
    cache, theirs = shared
    own = store(cache, "own", 1000, 200)
    make_room(cache / "frozen-new", 2000)
    assert own.exists()
    make_room(cache / "frozen-new", 3000)
    assert (own.exists(), theirs.exists()) == (False, True)


def test_a_store_of_another_user_is_said_to_be_one(shared):
    wanted = frozen(shared[1])
    with refuses("FP2037", "frozen-theirs"):
        wanted.find_missing_tiles()


def test_files_of_a_store_that_nobody_has_any_more_are_closed(tmp_path):
    wanted = frozen(tmp_path / "frozen-a")
    wanted.find_missing_tiles()
    opened = list(wanted._files.values())
    del wanted
    gc.collect()
    for file in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)


def test_without_the_variable_half_of_what_is_free_is_the_limit(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    free = activation_cache_limit.shutil.disk_usage(tmp_path).free
    make_room(tmp_path / "frozen-new", free // 4)
    with refuses("FP2026", tmp_path, VARIABLE):
        make_room(tmp_path / "frozen-new", free)


@pytest.mark.parametrize("given", ["much", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_one_sentence(tmp_path, monkeypatch, given):
    monkeypatch.setenv(VARIABLE, given)
    with refuses("FP1203", VARIABLE):
        make_room(tmp_path / "frozen-new", 1)
