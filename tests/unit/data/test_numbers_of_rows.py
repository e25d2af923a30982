"""Numbers of each row, in memory and on disk: what NumPy gives of all at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedpeft.data.partition import Partition
from fedpeft.data.rows import Rows, join_rows, split_test, split_validation
from fedpeft.data.tokens import compute_ends
from fedpeft.data.user_rows import Names, read
from fedpeft.machine import growing_array
from fedpeft.machine.growing_array import (
    concatenate,
    count_groups,
    create_zeros,
    find_unique,
    find_unmarked,
    sort_by_group,
    take_rows,
)

GROUPS = arrays(np.int64, st.integers(1, 200), elements=st.integers(0, 9))


@pytest.fixture(params=["memory", "disk"], autouse=True)
def place(request, monkeypatch):
    if request.param == "disk":
        monkeypatch.setattr(growing_array, "PIECE", 64)
        monkeypatch.setattr(growing_array, "ROWS", 17)
    return request.param


@given(GROUPS)
def test_values_are_numbered_as_unique_does(column):
    found, rows = find_unique(column)
    expected, inverse = np.unique(column, return_inverse=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(rows, inverse)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize("column", [["b", "a", "b"], [-3, 5, -3], [10**12, 0, 7], [0.5, 0.25, 0.5], []])
def test_other_columns_are_numbered_too(column):
    found, rows = find_unique(np.array(column))
    expected, inverse = np.unique(np.array(column), return_inverse=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(rows, inverse)


@given(GROUPS, st.randoms(use_true_random=False))
def test_rows_by_group_keep_their_order_within(group, random):
    order = np.array(random.sample(range(len(group)), len(group)))
    np.testing.assert_array_equal(sort_by_group(order, group, 10), order[np.argsort(group[order], kind="stable")])
    np.testing.assert_array_equal(sort_by_group(None, group, 10), np.argsort(group, kind="stable"))
    np.testing.assert_array_equal(count_groups(group, 10), np.bincount(group, minlength=10))


@given(arrays(np.float64, st.integers(1, 150), elements=st.floats(-1, 1)), st.randoms(use_true_random=False))
def test_what_is_taken_and_joined_is_the_same_on_disk(array, random):
    rows = np.array([random.randrange(len(array)) for _ in range(60)])
    np.testing.assert_array_equal(take_rows(array, rows), array[rows])
    np.testing.assert_array_equal(concatenate([array, array[rows]]), np.concatenate([array, array[rows]]))
    np.testing.assert_array_equal(find_unmarked(array > 0), np.flatnonzero(~(array > 0)))
    lengths = np.abs(array * 10).astype(np.int64)
    np.testing.assert_array_equal(compute_ends(lengths), np.concatenate([[0], np.cumsum(lengths)]))


def test_many_numbers_lie_in_a_file(place):
    made = take_rows(np.arange(1000), np.arange(0, 1000, 2))
    assert isinstance(made, np.memmap) == (place == "disk")
    assert isinstance(create_zeros(1000, np.int64), np.memmap) == (place == "disk")
    create_zeros(1000, np.int64)[:] = 3


def test_nothing_is_nothing():
    none = np.zeros(0, np.int64)
    assert (
        len(take_rows(np.arange(5), none)) == len(sort_by_group(none, np.arange(5), 5)) == len(concatenate([none])) == 0
    )
    np.testing.assert_array_equal(compute_ends(none), [0])


def systematic(total, strata, count, seed):
    """As `split_validation` says, with all rows in memory."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(total)
    order = order[np.argsort(strata[order], kind="stable")]
    first = np.ones(total, bool)
    first[1:] = np.diff(strata[order]) > 0
    candidates = order[~first]
    step = len(candidates) / count
    return np.sort(candidates[((np.arange(count) + generator.random()) * step).astype(np.int64)])


@pytest.mark.parametrize(("total", "owners", "count"), [(300, 7, 40), (120, 1, 119), (200, 60, 20), (90, 89, 1)])
def test_what_is_held_out_is_what_the_definition_says(total, owners, count):
    column = np.random.default_rng(total).integers(0, owners, total)
    rows = Rows([str(i) for i in range(total)], None, column)
    strata = np.unique(column, return_inverse=True)[1]
    if count > total - len(np.unique(column)):
        count = total - len(np.unique(column))
    held = systematic(total, strata, count, 5)
    kept, out = split_validation(rows, count, 5)
    assert list(out.inputs) == [str(i) for i in held]
    assert list(kept.inputs) == [str(i) for i in np.setdiff1d(np.arange(total), held)]
    np.testing.assert_array_equal(out.owners, column[held])
    both = join_rows(kept, out)
    assert list(both.inputs) == [*kept.inputs, *out.inputs]
    assert len(split_test(rows, 0.1, 1)[1]) == round(0.1 * total)


def test_rows_of_nobody_come_into_no_shard():
    client = np.array([2, -1, 0, 2, 0, -1] * 20)
    partition = Partition.from_assignment(client, 4)
    for k in range(4):
        np.testing.assert_array_equal(partition.shard(k), np.flatnonzero(client == k))


def test_owners_are_numbered_as_they_occur():
    found = read(
        "rows", ((f"line {i}", {"text": "a", "owner": f" {i % 3} "}) for i in range(100)), Names("text", None, "owner")
    )
    assert found.owners.names == ("0", "1", "2")
    np.testing.assert_array_equal(found.owners.rows, np.arange(100) % 3)
    np.testing.assert_array_equal(found.owners.find_positions(["x", "2", "1", "0"])[:3], [3, 2, 1])
