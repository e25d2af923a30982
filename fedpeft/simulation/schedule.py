"""Division of a cohort into groups, so that workers that take one group after another end at about the same time.

Free workers take the largest group first (list scheduling: Graham, SIAM J. Appl. Math. 17, 1969: at most 4/3 - 1/(3 w)
of the best for single jobs). Large groups cost the least for each client, and the last of them leave workers idle. If
this is expected to cost more than `TOLERATED`, groups become smaller, or taper off toward the end. The division is a
function of the expected costs alone, and so are the bits of every result.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

TOLERATED = 1.1
"""Expected time, relative to workers that are never idle, up to which groups stay as large as possible."""

PASS = 1 / 8
"""Fixed cost of a pass's step, in steps of one client, as a share of the clients that fill a pass."""


def cut(costs: Sequence[float], most: int, workers: int) -> list[int]:
    """Return the sizes of the groups, in order.

    Args:
        costs: expected costs of the clients, in the order of division: largest first.
        most: clients that fill a pass, and the most of a group, at least 1.
        workers: number of workers, at least 1.
    """
    largest = max(1, min(most, -(-len(costs) // workers)))
    usual = divide_evenly(len(costs), largest)
    ideal = sum(compute_group_costs(costs, usual, most)) / workers
    if estimate_end(costs, usual, most, workers) <= TOLERATED * ideal:
        return usual
    sizes = [
        usual,
        *(divide_evenly(len(costs), size) for size in range(1, largest)),
        list(_divide_tapering(costs, largest, workers)),
    ]
    return min(sizes, key=lambda each: (estimate_end(costs, each, most, workers), len(each)))


def divide_evenly(clients: int, size: int) -> list[int]:
    """Return groups of `size`, and the rest."""
    return [min(size, clients - start) for start in range(0, clients, size)]


def _divide_tapering(costs: Sequence[float], most: int, workers: int) -> Iterator[int]:
    """Yield sizes of groups that take at most half of a worker's share of what is left.

    This is guided self-scheduling (Polychronopoulos and Kuck, IEEE Trans. Computers C-36, 1987).
    """
    start, left = 0, float(sum(costs))
    while start < len(costs):
        share, size = left / (2 * workers), 1
        while size < most and start + size < len(costs) and sum(costs[start : start + size + 1]) <= share:
            size += 1
        yield size
        left -= sum(costs[start : start + size])
        start += size


def compute_group_costs(costs: Sequence[float], sizes: Sequence[int], most: int) -> list[float]:
    """Return the expected cost of each group: its clients' costs, and its passes, as many as its longest client's."""
    found, start = [], 0
    for size in sizes:
        group = costs[start : start + size]
        found.append(sum(group) + PASS * most * max(group))
        start += size
    return found


def estimate_end(costs: Sequence[float], sizes: Sequence[int], most: int, workers: int) -> float:
    """Return when the last worker ends, if groups cost what is expected."""
    return compute_makespan(compute_group_costs(costs, sizes, most), workers)


def compute_makespan(costs: Sequence[float], workers: int) -> float:
    """Return when the last of `workers` ends if each takes the next job, in this order, as soon as it is free."""
    free = [0.0] * workers
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)
