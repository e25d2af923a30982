"""How many threads pieces of work get."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from fedpeft.machine import threads
from fedpeft.machine.threads import TRIAL, use_faster_threads

PIECES = 9


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def find_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Return the threads of each piece if a piece takes the given seconds, by its number of threads."""

    def work(most: int, seconds: dict[int, float], pieces: int = PIECES) -> list[int]:
        now = 0.0
        monkeypatch.setattr(threads, "perf_counter", lambda: now)
        found = []
        for piece in use_faster_threads(range(pieces), most):
            assert piece == len(found)
            found.append(torch.get_num_threads())
            now += seconds[found[-1]] + 100 * (piece == 0)  # the first one loads what the others find in caches
        return found

    return work


def test_on_free_cores_all_threads_work(find_threads: Callable[..., list[int]]) -> None:
    assert find_threads(2, {2: 0.6, 1: 1.0})[len(TRIAL) :] == [2] * (PIECES - len(TRIAL))


def test_on_busy_cores_one_thread_works(find_threads: Callable[..., list[int]]) -> None:
    assert find_threads(2, {2: 2.8, 1: 1.0})[len(TRIAL) :] == [1] * (PIECES - len(TRIAL))


def test_pieces_that_slowly_grow_do_not_decide(find_threads: Callable[..., list[int]]) -> None:
    found = find_threads(2, {2: 1.0, 1: 1.01})
    assert found[1:5] == [2, 1, 1, 2]
    assert found[-1] == 2


def test_one_thread_stays_one(find_threads: Callable[..., list[int]]) -> None:
    assert find_threads(1, {1: 1.0}) == [1] * PIECES


@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_few_pieces_are_all_yielded(find_threads: Callable[..., list[int]], pieces: int) -> None:
    assert len(find_threads(2, {2: 1.0, 1: 1.0}, pieces)) == pieces
