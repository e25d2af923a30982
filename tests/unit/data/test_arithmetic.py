"""Arithmetic: answers are right by exact fractions, owners differ in operation and size, test questions are new."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction

from fedpeft.data.rows import load_dataset
from tests.refusals import refuses


def parse(row):
    system, user, assistant = json.loads(row)
    assert [system["role"], user["role"], assistant["role"]] == ["system", "user", "assistant"]
    first, sign, second = user["content"].removeprefix("What is ").removesuffix("?").split(" ")
    return int(first), sign, int(second), assistant["content"]


def test_answers_are_right_and_of_the_owners_operation_and_size():
    data = load_dataset("arithmetic(digits=3, rows=20, test_rows=5)")
    signs = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}
    compute = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}
    for rows, count in ((data.train, 20), (data.test, 5)):
        assert set(Counter(rows.owners.tolist()).values()) == {count}
        for owner, row in zip(rows.owners.tolist(), rows.inputs, strict=True):
            first, sign, second, answer = parse(row)
            operation, digits = owner.split(", ")
            assert sign == signs[operation]
            assert Fraction(answer) == compute[sign](Fraction(first), Fraction(second)) >= 0
            shown = [first // second if sign == "/" else first, second]
            assert {len(str(number)) for number in shown} == {int(digits[0])}
    assert not set(data.train.inputs) & set(data.test.inputs)
    assert len(set(data.train.owners.tolist())) == 12
    assert "synthetic" in data.notes[0]


def test_equal_seeds_give_equal_questions():
    one, same, other = (load_dataset(f"arithmetic(seed={seed})").train.inputs for seed in (3, 3, 4))
    assert one == same != other


def test_three_test_questions_are_training_questions_with_exchanged_numbers():
    """The dataset and the page of its results state them."""
    data = load_dataset("arithmetic")
    train, test = ({parse(row)[:3] for row in rows.inputs} for rows in (data.train, data.test))
    twins = {one for one in test if one[1] in "+*" and one[::-1] in train}
    assert twins == {(7, "+", 1), (4, "+", 8), (5, "*", 7)}


def test_more_questions_than_exist_are_refused():
    assert len(load_dataset("arithmetic(digits=1, rows=40, test_rows=5)").test) == 20  # all 45 differences
    with refuses("FP3463", "subtraction, 1 digit", 45, "rows=41", "test_rows=5"):
        load_dataset("arithmetic(digits=1, rows=41, test_rows=5)")
