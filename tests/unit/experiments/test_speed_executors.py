"""The intervals that the comparison of two executors prints."""

from __future__ import annotations

from math import comb

import pytest

from experiments.speed.executors import compute_interval


@pytest.mark.parametrize(("repeats", "left_out"), [(5, 0), (6, 0), (8, 0), (9, 1), (11, 1), (15, 3), (25, 7)])
def test_intervals_hold_the_median_with_95_percent(repeats, left_out):
    """As few of the ratios as suffice: one more left out on either side would be too many; six are the fewest."""
    ratios = [float(i) for i in reversed(range(repeats))]
    assert compute_interval(ratios) == (left_out, repeats - 1 - left_out)
    missed = [2 * sum(comb(repeats, i) for i in range(k + 1)) / 2**repeats for k in (left_out, left_out + 1)]
    assert missed[0] <= 0.05 or repeats < 6
    assert missed[1] > 0.05
