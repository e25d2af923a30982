"""A sample of another data set's rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedpeft.data.rows import Raters, load_dataset
from fedpeft.parts.families import DATASETS
from tests.refusals import refuses


def test_a_sample_has_as_many_rows_of_the_other_data_set_and_says_so():
    whole, some = load_dataset("tiny"), load_dataset("sample(of=tiny, rows=50, test_rows=20)")
    assert (len(some.train), len(some.test)) == (50, 20)
    assert (some.sampled, whole.sampled) == (True, False)
    assert set(some.train.inputs) <= set(whole.train.inputs)
    assert some.label_names == whole.label_names
    again = load_dataset("sample(of=tiny, rows=50, test_rows=20)")
    assert list(again.train.inputs) == list(some.train.inputs)


def test_classes_keep_their_shares():
    whole, some = load_dataset("tiny").train, load_dataset("sample(of=tiny, rows=60)").train
    shares = [np.bincount(rows.labels, minlength=4) / len(rows) for rows in (whole, some)]
    assert np.abs(shares[0] - shares[1]).max() < 0.03


def test_a_data_set_of_fewer_rows_stays_whole():
    whole, some = load_dataset("tiny"), load_dataset("sample(of=tiny, rows=100000, test_rows=100000)")
    assert list(some.train.inputs) == list(whole.train.inputs)
    assert list(some.test.inputs) == list(whole.test.inputs)


def test_raters_stay_with_the_rows_that_they_have_rated(monkeypatch):
    whole = load_dataset("tiny")
    rated = replace(whole, raters=Raters(np.ones(len(whole.test)), np.ones(len(whole.test))))
    monkeypatch.setattr(type(DATASETS.build("tiny")), "load", lambda self: rated)
    assert load_dataset("sample(of=tiny, rows=50, test_rows=20)").raters is None
    assert load_dataset("sample(of=tiny, rows=50, test_rows=100000)").raters is rated.raters


def test_a_file_inside_is_found_from_everywhere():
    text = DATASETS.replace_paths("sample(of='file:rows.csv', rows=8)", lambda path: f"/there/{path}")
    assert text == "sample(of='file:/there/rows.csv', rows=8)"


def test_an_unknown_data_set_inside_is_named():
    with refuses("FP1231", "tinny"):
        load_dataset("sample(of=tinny)")
