"""What is found wrong with rows that can be used: each finding on rows that have it, none on rows that have not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fedpeft.data.inspection import check_lengths, check_partition, check_rows, report_test_overlap
from fedpeft.data.partition import Partition
from fedpeft.data.rows import Dataset, Rows


def data(train, test, validation=None):
    def rows(pairs):
        return None if pairs is None else Rows([t for t, _ in pairs], np.array([c for _, c in pairs]))

    return Dataset(
        "x", "text", "classification", rows(train), rows(test), ("no", "yes"), "tiny", validation=rows(validation)
    )


GOOD = [(f"text {i}", i % 2) for i in range(40)]
TEST = [("other", 0), ("another", 1)]


def test_good_rows_have_nothing_wrong():
    assert check_rows(data(GOOD, TEST, [("third", 0)])) == []


@pytest.mark.parametrize(
    ("train", "test", "validation", "words"),
    [
        ([*GOOD, ("Text  3", 1)], TEST, None, "1 of 41 training examples are duplicates"),
        (GOOD, [*TEST, GOOD[0]], None, "1 of 3 test examples also occur in the training examples"),
        (GOOD, TEST, [GOOD[1]], "1 of 1 validation examples also occur in the training examples"),
        ([*GOOD, ("text 3", 0)], TEST, None, "1 training examples have another class than an equal example"),
        (GOOD[:12], TEST, None, r"2 of 2 classes have fewer than 10 training examples: no \(6\), yes \(6\)"),
        (
            [*GOOD, *((f"more {i}", 0) for i in range(400))],
            TEST,
            None,
            "95% of the training examples have the class no",
        ),
        (GOOD, TEST[:1], None, "1 of 2 classes have no test examples, e.g. yes"),
    ],
)
def test_each_finding_is_told(train, test, validation, words):
    found = check_rows(data(train, test, validation))
    assert any(re.search(words, sentence) for sentence in found), found


def test_a_run_tells_of_test_rows_that_it_trains_on_where_they_are_more_than_a_few():
    many = [(f"test {i}", i % 2) for i in range(99)]
    assert report_test_overlap(data(GOOD, [*many, GOOD[0]])) == []
    (said,) = report_test_overlap(data(GOOD, [*many, GOOD[0], GOOD[1]]))
    assert said.startswith("2 of 101 test examples also occur in the training examples")


def test_images_are_compared_pixel_by_pixel():
    images = np.zeros((20, 2, 2), np.uint8)
    images[:, 0, 0] = np.arange(20)
    images[19] = images[18]
    rows, labels = Rows(images, np.arange(20) % 2), np.array([0, 1])
    made = Dataset("x", "image", "classification", rows, Rows(images[:2] + 50, labels), ("a", "b"), "tiny")
    assert check_rows(made)[0] == "1 of 20 training examples are duplicates"


def test_lengths_and_partitions():
    assert check_lengths(np.array([5, 8]), 8) == []
    assert check_lengths(np.array([5, 9]), 8)[0].startswith("1 of 2 examples are longer than 8 tokens")
    rows = Rows([str(i) for i in range(24)], np.array([0, 1] * 12))
    even = Partition.from_shards([np.arange(12), np.arange(12, 24)])
    assert check_partition(even, rows) == []
    skewed = Partition.from_shards([np.arange(0, 24, 2), np.arange(1, 24, 2)[:9]])
    assert check_partition(skewed, rows) == [
        "1 of 2 clients have fewer than 10 examples, the smallest 9",
        "2 of 2 clients have examples of one class only",
    ]
