"""As many clients as one likes on few rows: drawn by id, never stored."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fedpeft.data.rows import Rows
from fedpeft.parts.families import PARTITIONS
from tests.refusals import refuses

ROWS = Rows(["text"] * 500, np.arange(500) % 5)


def test_a_million_clients_take_no_memory_and_each_has_its_rows():
    made = PARTITIONS.build("resample(rows=30)").split(ROWS, 1_000_000, 3)
    assert len(made) == len(made.sizes) == 1_000_000
    assert len(pickle.dumps(made)) < 1000
    for client in (0, 999_999):
        shard = made.shard(client)
        assert shard.dtype == np.int64
        assert len(shard) == made.sizes[client] == 30
        assert (np.diff(shard) >= 0).all()
        assert 0 <= shard[0] <= shard[-1] < 500


def test_a_client_s_rows_depend_on_seed_and_id_alone():
    few, many, other = (PARTITIONS.build("resample").split(ROWS, n, seed) for n, seed in ((5, 3), (9, 3), (9, 4)))
    assert (few.shard(2) == many.shard(2)).all()
    assert (few.shard(2) != many.shard(3)).any()
    assert (many.shard(2) != other.shard(2)).any()


def test_all_rows_are_drawn_alike():
    made = PARTITIONS.build("resample(rows=50)").split(ROWS, 2000, 0)
    drawn = np.bincount(np.concatenate([made.shard(k) for k in range(2000)]), minlength=500)
    assert drawn.mean() == 200
    assert np.abs(drawn - 200).max() < 6 * 200**0.5


def test_the_statistics_are_of_some_clients_and_say_that_rows_are_shared():
    made = PARTITIONS.build("resample(rows=100)").split(ROWS, 50_000, 0)
    found = made.statistics(ROWS.labels)
    assert (found.clients, found.rows_min, found.rows_max, found.unused_rows) == (50_000, 100, 100, 0)
    assert found.resampled
    assert found.label_distance == pytest.approx(0.08, abs=0.02)  # the mean of 5 binomial shares of 100 draws
    assert "share examples" in str(found)
    assert not PARTITIONS.build("iid").split(ROWS, 5, 0).statistics(ROWS.labels).resampled


def test_rows_that_nobody_has_are_estimated():
    made = PARTITIONS.build("resample(rows=10)").split(ROWS, 60, 0)
    held = np.unique(np.concatenate([made.shard(k) for k in range(60)]))
    assert made.statistics(ROWS.labels).unused_rows == pytest.approx(500 - len(held), abs=30)  # e^-1.2 of 500


def test_there_is_no_client_beyond_the_last():
    made = PARTITIONS.build("resample").split(ROWS, 5, 0)
    with pytest.raises(IndexError, match="no client 5 of 5"):
        made.shard(5)
    with refuses("FP3086"):
        PARTITIONS.build("resample").split(ROWS, 0, 0)
