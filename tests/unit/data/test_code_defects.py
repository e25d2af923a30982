"""Datasets of code with planted defects, and of clones: what a defect is, and that only the draw decides the label."""

from __future__ import annotations

import ast
import json
from collections import Counter
from importlib import import_module

import numpy as np
import pytest

from fedpeft.data.code_clones import find_own_names, rewrite_statements
from fedpeft.data.code_mutations import KINDS, plant_defect
from fedpeft.data.datasets.code_types import PACKAGES
from fedpeft.data.function_tests import write_tests
from fedpeft.data.python_functions import Function
from fedpeft.data.rows import Dataset, get_default_head, load_dataset
from fedpeft.data.tagged_words import parse_row
from fedpeft.models.answers.code_peers import build_error, decode, encode

BODY = """def name{0}(rows, limit: int):
    total = {0}
    count = 1
    for row in rows:
        if row.size < limit:
            total = total + row.size
            count += 1
    return total if count > 2 else limit"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    found = {
        package.name: [Function(f"f{i}", BODY.format(i + 100 * n), "int", str(i)) for i in range(30)]
        for n, package in enumerate(PACKAGES[:5])
    }
    for name in ("code_review", "code_repair", "code_clones"):
        monkeypatch.setattr(import_module(f"fedpeft.data.datasets.{name}"), "read_all", lambda: found)
    return load_dataset


def test_every_kind_of_defect_is_planted():
    text = (
        "def f(rows, limit, strict=True):\n    found = 3\n    if not rows:\n        return list(rows)\n"
        "    while strict:\n        found = found + len(rows)\n        strict = found < limit and False\n"
        "    return found"
    )
    found = [plant_defect(text, np.random.default_rng(seed)) for seed in range(60)]
    assert {defect.edit.kind for defect in found if defect} == set(KINDS)
    for defect in found:
        start, new = defect.edit.start, defect.edit.new
        assert defect.text[start : start + len(new)] == new
        assert text.count("\n", 0, start) == defect.line
        compile(defect.text, "f", "exec")
        changed = [i for i, (a, b) in enumerate(zip(text.split("\n"), defect.text.split("\n"), strict=True)) if a != b]
        assert changed == [defect.line]
    assert plant_defect("x = 1", np.random.default_rng(0)) is None
    assert plant_defect("def f(self):\n    return self", np.random.default_rng(0)) is None


def count_owners(data: Dataset) -> tuple[dict[str, int], set[str]]:
    assert data.train.owners is not None
    assert data.test.owners is not None
    return Counter(data.train.owners.tolist()), set(data.test.owners.tolist())


def test_a_hunk_is_cut_at_the_same_place_with_and_without_defect(load) -> None:
    data = load("code_review(package_rows=20, context=1)")
    assert count_owners(data) == (dict.fromkeys((p.name for p in PACKAGES[:4]), 20), {PACKAGES[4].name})
    originals = [set(BODY.format(n).split("\n")) for n in range(500)]
    for rows in (data.train, data.test):
        assert rows.labels is not None
        assert 0.2 < rows.labels.mean() < 0.8
        for text, label in zip(rows.inputs, rows.labels, strict=True):
            lines = text.split("\n")
            assert 3 <= len(lines) <= 4
            assert any(set(lines) <= original for original in originals) == (label == 0)
    assert list(load("code_review(package_rows=20, context=1)").train.inputs) == list(data.train.inputs)
    assert list(load("code_review(package_rows=20, context=1, seed=1)").train.inputs) != list(data.train.inputs)


def test_words_of_a_defect_are_labeled(load) -> None:
    data, whole = load("code_review(where=True)"), load("code_review")
    assert data.task == "token_labels"
    assert get_default_head("code_review(where=True)") == "zero"
    assert get_default_head("code_review") is None
    for row, text, label in zip(data.train.inputs, whole.train.inputs, whole.train.labels, strict=True):
        words, tags = parse_row(row)
        assert (1 in tags) == bool(label)
        assert 2 not in tags or tags[tags.index(2) - 1] in (1, 2)
        assert sum(tag == 1 for tag in tags) == label
        assert "".join(text.split()) == "".join(words).replace(" ", "")


def test_words_of_f_strings_are_left_out(load, monkeypatch) -> None:
    """Python 3.11 reads an f-string as one word, and newer versions as several."""
    found = {p.name: [Function("f", BODY.format(0) + ' + f"{rows} {limit}"', "int", "f")] for p in PACKAGES[:5]}
    for functions in found.values():
        functions.append(Function("g", BODY.format(1), "int", "g"))
    monkeypatch.setattr(import_module("fedpeft.data.datasets.code_review"), "read_all", lambda: found)
    assert len(load("code_review").train.inputs) == 8
    rows = load("code_review(where=True)").train.inputs
    assert [parse_row(row)[0][1] for row in rows] == ["name1"] * 4


def test_a_repair_gives_the_original(load) -> None:
    data = load("code_repair(package_rows=20)")
    for row in data.train.inputs:
        found = json.loads(row)
        assert ast.dump(ast.parse(found["prompt"])) != ast.dump(ast.parse(found["answer"]))
        assert found["answer"].startswith("def name")
    pairs = load("code_repair(package_rows=20, task=seq2seq)").train.inputs
    assert [json.loads(row)["target"] for row in pairs] == [json.loads(row)["answer"] for row in data.train.inputs]


@pytest.mark.parametrize("name", ["code_review", "code_review(where=True)", "code_repair", "code_clones"])
def test_a_run_says_that_defects_are_synthetic(load, name) -> None:
    assert any("synthetic" in note for note in load(name).notes)


def test_a_near_miss_is_no_clone(load) -> None:
    for misses in ("defect", "similar"):
        data = load(f"code_clones(misses={misses})")
        assert data.train.labels is not None
        assert 0.2 < data.train.labels.mean() < 0.8
        for text in data.train.inputs:
            first, second = text.split("\n# other:\n")
            assert ast.dump(ast.parse(first)) != ast.dump(ast.parse(second))


def test_rewritten_functions_do_the_same() -> None:
    texts = [
        "def f(a, b):\n    if a < b:\n        a += 1\n    else:\n        b -= 2\n    return a if a != b else 0",
        "def f(a, b):\n    for _ in range(3):\n        if not a:\n            a = b\n        else:\n            b = a"
        "\n        a += 5\n    return (a, b)",
        "def f(a, b):\n    if a in (1, 2):\n        x = 1\n        y = 2\n    else:\n        x, y = 3, 4\n"
        "    y += 2\n    return x + y",
    ]
    for text in texts:
        changed = {rewrite_statements(text, np.random.default_rng(seed)) for seed in range(30)}
        assert len(changed) > 1
        for other in changed:
            assert other is not None
            assert other != text
            spaces: list[dict] = [{}, {}]
            exec(text, spaces[0])
            exec(other, spaces[1])
            for a in range(-2, 4):
                for b in range(-2, 4):
                    assert spaces[0]["f"](a, b) == spaces[1]["f"](a, b), other
    assert rewrite_statements("def f(a):\n    return a", np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("text", "renamed"),
    [
        ("def walk(node, depth):\n    return node if depth > 3 else walk(node, depth=depth + 1)", ["node", "walk"]),
        ("def walk(self, depth):\n    return self.walk(depth=depth)", ["walk"]),
        ("def walk(node, depth):\n    return node.visit(depth=depth)", ["depth", "node", "walk"]),
        ("def run(self, x):\n    return run(x)", ["x"]),
        ("def run(self, x):\n    return x", ["run", "x"]),
        ("def make(x):\n    class A:\n        strict = True\n    return A.strict, x", ["make", "x"]),
        (
            "def make(x):\n    def inner(key, y):\n        return y\n    return partial(inner, key=x)",
            ["make", "x", "y"],
        ),
    ],
)
def test_a_clone_keeps_names_that_mean_something_else(text: str, renamed: list[str]) -> None:
    assert find_own_names(text) == renamed


def test_tests_tell_a_defect_from_the_original() -> None:
    text = "def sizes(words: list[str], most: int | None = 3):\n    return [len(w) for w in words if w != most][:most]"
    program = write_tests(text, np.random.default_rng(0))
    assert program is not None

    def passes(candidate: str) -> bool:
        space: dict = {}
        exec(candidate, space)
        try:
            exec(program, {"sizes": space["sizes"]})
        except AssertionError:
            return False
        return True

    assert passes(text)
    assert not passes(text.replace("[:most]", ""))
    for unfit in (
        "def f(x):\n    return x",
        "def f(x: Row):\n    return x",
        "def f(x: int):\n    return helper(x)",
        "def f(x: str):\n    return open(x)",
        "def f():\n    return 1",
        "async def f(x: int):\n    return x",
        "def same(x: int):\n    return x",
        "def sum(x: int):\n    return x",
    ):
        assert write_tests(unfit, np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("text", "defective"),
    [
        ("def first(words: list[str]):\n    return next(w for w in words if w)", ("next(", "len(list(")),
        ("def square(x: float):\n    return [{1: (x, float('nan'))}]", ("(x,", "(2 * x,")),
        ("def read(x: bytes):\n    return (x + b'\\xff').decode('ascii')", ("'ascii'", "'latin1'")),
    ],
)
def test_tests_pass_for_ends_of_iterations_and_for_nan(text: str, defective: tuple[str, str]) -> None:
    """Across processes: NaN is another object there, and some errors arrive as a RuntimeError."""
    program = write_tests(text, np.random.default_rng(0))
    assert program is not None
    name = text.partition("(")[0].removeprefix("def ")

    def passes(candidate: str) -> bool:
        space: dict = {}
        exec(candidate, space)

        def call_far(*arguments):
            try:
                return decode(json.loads(json.dumps(encode(space[name](*arguments)))))
            except Exception as error:
                raise build_error(type(error).__name__, str(error)) from None

        try:
            exec(program, {name: call_far})
        except AssertionError:
            return False
        return True

    assert passes(text)
    assert not passes(text.replace(*defective) + ")" * (name == "first"))
