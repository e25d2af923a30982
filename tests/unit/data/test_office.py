"""Office tasks: their answers are right by a solver that reads the questions, and test questions are new."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import date, datetime

import numpy as np
import pytest

from fedpeft.data.datasets.office import KINDS, ORDER, Office
from fedpeft.data.rows import load_dataset, split_validation
from fedpeft.parts.families import PARTITIONS


def solved(kind: str, question: str) -> str:
    """Return the answer, derived from the question alone."""
    behind = question.rpartition(": ")[2].rstrip("?.")
    words = behind.split(", ")
    prices = dict(reversed(re.findall(r"(\w+) (\d+\.\d\d)", question)))
    plan = dict(re.findall(r"(\w+day) (\w+)", question))
    return {
        "acronyms": lambda: re.sub("[^A-Z]", "", question.removeprefix("What")),
        "capitals": lambda: behind.upper(),
        "counts": lambda: str(question.count(",") + 1),
        "dates": lambda: date.isoformat(datetime.strptime(re.search(r"\d.*\d{4}", question)[0], "%d %B %Y").date()),
        "e-mails": lambda: re.search(r"\S+@\S+", question)[0],
        "invoices": lambda: re.search(r"INV-\d{4}", question)[0],
        "names": lambda: re.sub(r"(.*) (\w+)$", r"\2, \1", behind),
        "numbers": lambda: str(max(map(int, words))),
        "prices": lambda: min(prices, key=lambda thing: float(prices[thing])),
        "reversals": lambda: ", ".join(reversed(words)),
        "sorting": lambda: ", ".join(sorted(words)),
        "timetables": lambda: plan[question.rpartition(" ")[2].rstrip("?")],
    }[kind]()


def test_answers_are_right():
    data = load_dataset("office")
    for rows in (data.train, data.test):
        for kind, text in zip(rows.owners, rows.inputs, strict=True):
            system, user, assistant = json.loads(text)
            assert system == {"role": "system", "content": ORDER}
            assert assistant["content"] == solved(str(kind), user["content"]), user["content"]


def test_test_questions_occur_in_no_training_row():
    data = load_dataset("office(rows=200, test_rows=40)")
    questions = [{json.loads(text)[1]["content"] for text in rows.inputs} for rows in (data.train, data.test)]
    assert not questions[0] & questions[1]
    assert [len(q) for q in questions] == [12 * 200, 12 * 40]


def test_each_kind_is_a_client():
    data = load_dataset("office")
    assert Counter(data.train.owners.tolist()) == dict.fromkeys(KINDS, 40)
    assert Counter(data.test.owners.tolist()) == dict.fromkeys(KINDS, 8)
    rest, held = split_validation(data.train, 48)
    partition = PARTITIONS.build("natural").split(rest, 0, 0).check(len(rest))
    assert len(partition) == 12
    assert Counter(held.owners.tolist()) == dict.fromkeys(KINDS, 4)


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_depend_on_the_seed_alone(seed):
    one, other = Office(seed=seed).load(), Office(seed=seed).load()
    assert one.train.inputs == other.train.inputs
    assert one.train.inputs != Office(seed=seed + 1).load().train.inputs
    assert np.array_equal(one.test.owners, other.test.owners)
