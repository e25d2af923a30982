"""Garbage collection around the imports of a command."""

from __future__ import annotations

import gc

import pytest

from fedpeft.machine import startup


@pytest.fixture
def usual():
    """Return the thresholds of this process, and restore them."""
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def test_a_command_collects_garbage_once_its_libraries_are_loaded(usual):
    startup.postpone_collection()
    assert gc.get_threshold()[0] > 100 * usual[0]
    frozen = gc.get_freeze_count()
    kept = [[] for _ in range(100)]
    startup.begin_collection()
    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() >= frozen + len(kept)


def test_a_program_that_imports_fedpeft_keeps_its_own_collection(usual):
    gc.set_threshold(5_000, 7, 9)
    frozen = gc.get_freeze_count()
    startup.begin_collection()
    assert gc.get_threshold() == (5_000, 7, 9)
    assert gc.get_freeze_count() <= frozen  # frozen objects may end at any time
