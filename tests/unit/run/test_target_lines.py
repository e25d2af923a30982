"""Lines of a summary on classes: accuracy alone flatters who says the most frequent one."""

from __future__ import annotations

import numpy as np
import torch

from fedpeft.models.target_measures import measure_classes
from fedpeft.reporting.console import format_amount
from fedpeft.reporting.target_lines import describe_undefined, list_card_lines, list_target_lines


def told(truth, said, names=("ok", "complaint")):
    truth, said = np.array(truth), np.array(said)
    return {**measure_classes(said, truth, names), "probe": measure_classes(truth, truth, names)}


def test_uneven_classes_stand_beside_the_most_frequent_one_and_each_by_itself():
    found = told([0] * 97 + [1] * 3, [0] * 100)
    assert dict(list_target_lines(found)) == {
        "always the most frequent class, ok": "0.9700",
        "balanced accuracy (mean over classes), test rows": "0.5000",
        "balanced accuracy (mean over classes), frozen base, linear probe": "1.0000",
        "classes of which no test row is found": "complaint",
    }
    assert "always the most frequent class, ok" in list_card_lines(found)


def test_many_missed_classes_are_counted():
    names = [f"c{i}" for i in range(8)]
    found = told([0] * 20 + list(range(8)), [0] * 28, names)
    assert dict(list_target_lines(found))["classes of which no test row is found"] == "c1, c2, c3, c4, c5, and 2 more"


def test_even_classes_need_no_more_than_accuracy():
    assert list_target_lines(told([0] * 50 + [1] * 50, [0] * 100)) == []
    assert list_target_lines(None) == []


def test_few_test_rows_are_told_with_what_chance_makes_of_them():
    even = told([0] * 50 + [1] * 50, [0] * 100)
    assert list_target_lines({"rows": 100, **even}, 0.5) == [
        ("test rows, and the standard error on them", "100, 0.0500")
    ]
    ((_, value),) = list_target_lines({"rows": 12, **even}, 1.0)
    assert value == "12, 0.0743", "of few rows that are all right it is not 0"
    assert list_target_lines({"rows": 5000, **even}, 0.5) == []
    assert list_target_lines({"rows": 60, "r2": 0.5, "pearson": None, "spearman": None})[0] == ("test rows", "60")


def test_amounts_of_thousands_are_whole_numbers():
    told = {"rmse": 46179.34, "mae": 0.51234}
    assert dict(list_target_lines(told))["root mean squared / mean absolute error, test rows"] == "46,179 / 0.5123"
    assert [format_amount(value) for value in (9999.4, -12345.6, 3e6)] == ["9999", "-12,346", "3e+06"]


def test_what_is_no_number_is_noted_by_name():
    found = {
        "a": float("nan"),
        "b": {"c": np.float32("inf"), "d": [1, torch.tensor(float("nan"))]},
        "e": None,
        "f": "x",
    }
    assert describe_undefined(found).startswith("measured on the test rows, a, b.c, b.d.1: NaN or infinite, so null")
    assert describe_undefined({"a": 1.0, "probe": None}) == describe_undefined(None) == ""


def test_a_task_of_one_s_own_may_use_our_names_for_something_else():
    for found in ({"rmse": 0.5}, {"rmse": float("nan")}, {"rmse": "low"}, {"by_class": {"a": 1.0}}):
        lines = dict(list_target_lines({"rows": 5000, **found}))
        assert list(lines.values()) == (["0.5 / -"] if found == {"rmse": 0.5} else [])
        list_card_lines(found)
