"""Polarity in four domains: how lines are read, and that no document is in both parts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fedpeft.data.cached_rows import hash_rows
from fedpeft.data.datasets.reviews import DOMAINS, build_raters, is_new, parse_ratings, parse_votes, place, read_rated
from fedpeft.data.rows import load_dataset
from fedpeft.parts.families import PARTITIONS
from tests.refusals import refuses


def test_lines() -> None:
    rows = list(read_rated("1_1\t-0.9\tBad.\n1_2\t2\tGood.\n7\t0.5\tA tweet\twith a tab\n8\t1\t \n", "x"))
    assert [row[:3] for row in rows] == [("1", -0.9, "Bad."), ("1", 2.0, "Good."), ("7", 0.5, "A tweet\twith a tab")]
    assert [row.name for row in rows] == ["1_1", "1_2", "7"]
    with refuses("FP3046", "2", "x"):
        list(read_rated("1\t2\ta\n3\t4\n", "x"))


def test_votes() -> None:
    assert parse_ratings("1_1\t-0.5\t0.5\t[0, -1]\n2\t1\t0\t[1, 1]\n", "x") == {"1_1": "[0, -1]", "2": "[1, 1]"}
    with refuses("FP3044", "1", "x"):
        parse_ratings("1\t2\n", "x")
    for wrong in ("", "[]", "[1, 'a']", "3", "[1.5]"):
        with refuses("FP3045", "films"):
            parse_votes(wrong, "films")
    raters = build_raters([parse_votes("[3, -1, 0, 2]", "films"), [1, 1]])
    assert raters.share.tolist() == [(2 + 0.5) / 4, 1.0]
    assert raters.spread.tolist() == [np.std([3, -1, 0, 2]), 0.0]


def test_texts_that_differ_in_signs_and_case_are_one() -> None:
    seen: set[str] = set()
    assert [is_new(text, seen) for text in ("So good!", "so, GOOD", "so bad", ":)", ":(", ":)")] == [
        *(True, False, True),
        *(True, True, False),
    ]


def test_places_are_the_same_everywhere() -> None:
    assert 0.2 < np.mean([place(f"x/{i}") for i in range(500)]) < 0.8
    assert place("films/1") == pytest.approx(0.33218009)


@pytest.mark.slow
def test_the_reviews_themselves() -> None:
    data = load_dataset("reviews")
    assert data.train.owners is not None
    assert data.test.owners is not None
    owners = Counter(data.train.owners.tolist())
    assert len(owners) == 11_274
    assert {owner.partition("/")[0] for owner in owners} == set(DOMAINS) == set(data.test.owners.tolist())
    assert max(owners.values()) < 50
    texts = [*data.train.inputs, *data.test.inputs]
    assert len(set(texts)) == len(texts)
    assert data.train.labels is not None
    clients = PARTITIONS.build("grouped").split(data.train, 100, 0)
    assert 120 < clients.sizes.min() < clients.sizes.max() < 180
    shares = [data.train.labels[clients.shard(client)].mean() for client in range(100)]
    assert 0.2 < min(shares) < max(shares) < 0.9  # film snippets lie sorted by polarity in their file
    assert data.train.inputs[0].startswith("It's mainly a holiday celebration")
    assert data.train.labels[0] == 1
    assert data.raters is not None
    assert ((data.raters.share > 0.5) == (data.test.labels == 1)).mean() > 0.98
    assert 0.5 < data.raters.spread.min() + data.raters.spread.mean() < 2.5
    assert hash_rows(data.train).startswith("bb1d2d753486d092")
    assert hash_rows(data.test).startswith("44d05619b9336ff7")
