"""A computation beside a run: its result, its errors, and that nothing is left of one that is ended."""

import math
import os
import pickle
import signal
import threading
import time

import pytest

from fedpeft.machine.background_process import NICENESS, BackgroundProcess
from fedpeft.machine.cache import get_cache_directory
from tests.refusals import refuses


@pytest.fixture
def told():
    """Who has told that it is done, and a way to wait for that."""
    heard, event = [], threading.Event()

    def done(beside):
        heard.append((beside.error, beside.is_lost))
        event.set()

    done.heard, done.event = heard, event
    return done


def test_a_result_comes_back_and_is_told_of(told):
    beside = BackgroundProcess(told, math.sqrt, 9.0)
    try:
        assert beside.wait_for_result() == 3.0
        assert told.event.wait(300)
        assert told.heard == [(None, False)]
        assert beside.seconds >= 0
    finally:
        beside.close()


def test_an_error_is_raised_with_the_place_where_it_happened(told):
    beside = BackgroundProcess(told, math.sqrt, -1.0)
    try:
        with pytest.raises(ValueError, match=r"math domain error|nonnegative") as caught:
            beside.wait_for_result()
        assert "background_process.py" in "".join(caught.value.__notes__)
        assert told.event.wait(300)
        assert not beside.is_lost
    finally:
        beside.close()


def test_what_cannot_be_sent_is_an_error(told):
    beside = BackgroundProcess(told, threading.Lock)
    try:
        with pytest.raises(Exception, match="pickle"):
            beside.wait_for_result()
    finally:
        beside.close()


class UnreadableError(Exception):
    """Pickled by its message alone, of which it can't be made anew."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


class Answer:
    def recv(self):
        return pickle.loads(pickle.dumps((1.0, None, UnreadableError("rows", "none"))))


@pytest.mark.fast
def test_an_error_that_cannot_be_read_is_one_all_the_same(told):
    beside = BackgroundProcess.__new__(BackgroundProcess)
    beside._done, beside._answer, beside._finished = told, Answer(), threading.Event()
    beside._result, beside.error, beside.seconds, beside._closed = None, None, None, False
    threading.Thread(target=beside._watch, daemon=True).start()
    assert told.event.wait(300)
    with refuses("FP5156", "UnreadableError"):
        beside.wait_for_result()


def test_a_process_that_is_killed_from_outside_has_no_result(told):
    beside = BackgroundProcess(told, time.sleep, 60)
    os.kill(beside.pid, signal.SIGKILL)
    assert beside.wait_for_result() is None
    assert told.event.wait(300)
    assert told.heard == [(None, True)]
    beside.close()


def test_closing_ends_the_process_at_once_and_in_silence(told):
    beside = BackgroundProcess(told, time.sleep, 60)
    assert beside.is_running
    beside.close()
    assert not beside.is_running
    with pytest.raises(ProcessLookupError):
        os.kill(beside.pid, 0)
    assert told.heard == []


def test_it_computes_with_what_the_others_leave(told):
    beside = BackgroundProcess(told, os.nice, 0)
    try:
        assert beside.wait_for_result() == os.nice(0) + NICENESS
    finally:
        beside.close()


def test_it_keeps_things_where_the_environment_says_now(told, tmp_path, monkeypatch):
    """What processes are forked from has the environment of an earlier moment."""
    for cache in (tmp_path / "first", tmp_path / "second"):
        monkeypatch.setenv("FEDPEFT_CACHE", str(cache))
        beside = BackgroundProcess(told, get_cache_directory)
        try:
            assert beside.wait_for_result() == cache
        finally:
            beside.close()
    monkeypatch.delenv("FEDPEFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    beside = BackgroundProcess(told, get_cache_directory)
    try:
        assert beside.wait_for_result() == tmp_path / "fedpeft"
    finally:
        beside.close()
