"""How a cohort is cut into groups: workers end together, and nothing but the expected costs decides."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.simulation.schedule import PASS, compute_group_costs, compute_makespan, cut, divide_evenly, estimate_end

COSTS = st.lists(st.integers(1, 200), min_size=1, max_size=60).map(lambda found: sorted(map(float, found))[::-1])


def drawn(clients, spread, seed=0):
    """Log-normal costs, largest first."""
    random = np.random.default_rng(seed)
    return sorted(np.ceil(20 * random.lognormal(0, spread, clients)).tolist(), reverse=True)


@pytest.mark.parametrize("workers", [2, 8, 64])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("most", [1, 2, 9])
def test_workers_end_within_a_tenth_of_their_share(workers, spread, most):
    """Of all that is to do, with clients enough for that: their costs, and what passes cost beside."""
    costs = drawn(12 * workers, spread)
    sizes = cut(costs, most, workers)
    groups = compute_group_costs(costs, sizes, most)
    assert compute_makespan(groups, workers) <= 1.1 * max(sum(groups) / workers, groups[0])


@pytest.mark.parametrize("workers", [2, 8, 64])
def test_it_is_no_later_than_equal_groups_and_at_times_much_earlier(workers):
    gains = []
    for seed in range(5):
        costs = drawn(3 * workers + 1, 1.0, seed)
        usual = divide_evenly(len(costs), min(4, -(-len(costs) // workers)))
        gains.append(estimate_end(costs, usual, 4, workers) / estimate_end(costs, cut(costs, 4, workers), 4, workers))
    assert min(gains) >= 1
    assert max(gains) > 1.1


@given(COSTS, st.integers(1, 12), st.integers(1, 20))
def test_every_client_is_in_one_group_and_none_is_too_large(costs, most, workers):
    sizes = cut(costs, most, workers)
    assert sum(sizes) == len(costs)
    assert all(1 <= size <= most for size in sizes)
    assert sizes == cut(costs, most, workers)


@given(COSTS, st.integers(1, 12))
def test_one_worker_has_the_largest_groups(costs, most):
    assert cut(costs, most, 1) == divide_evenly(len(costs), min(most, len(costs)))


def test_equal_work_is_cut_evenly():
    assert cut([5.0] * 16, 4, 2) == [4] * 4
    assert cut([5.0] * 10, 4, 10) == [1] * 10


def test_a_group_costs_its_clients_and_its_pass():
    assert compute_group_costs([8.0, 4.0, 2.0], [2, 1], 4) == [12 + PASS * 4 * 8, 2 + PASS * 4 * 2]


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=40), st.integers(1, 8))
def test_the_makespan_is_that_of_a_simulation_by_events(costs, workers):
    waiting, running, now = list(costs), [], 0.0
    while waiting or running:
        while waiting and len(running) < workers:
            heapq.heappush(running, now + waiting.pop(0))
        now = heapq.heappop(running)
    assert compute_makespan(costs, workers) == pytest.approx(now)
