"""Docstrings and functions out of source text, and clones of functions."""

from __future__ import annotations

import ast

import numpy as np
import pytest

from fedpeft.data.code_clones import STEMS, clone, find_own_names, is_independent
from fedpeft.data.datasets.code_search import drop_duplicates, find_documented
from fedpeft.machine import seeds

SOURCE = '''
import os


class Store:
    @property
    def size(self) -> int:
        """How many bytes the files take.

        Args: none.
        """
        total = 0  # of all
        for name in self.names:
            total += os.stat(name).st_size
        return total

    def short(self):
        """Too short."""
        return 1


def reading(path, mode="r"):
    """
    Open the file at a path
    for reading only.
    :param path: where it is
    """
    def inner(line):
        """Not a word of this inner docstring is kept."""
        return line
    return open(path, mode)


def nothing():
    """This one does nothing at all."""
    ...
'''


def test_a_query_is_what_the_docstring_says_first_and_the_document_has_no_word_of_it() -> None:
    found = list(find_documented(SOURCE, "store"))
    assert [f.query for f in found] == [
        "How many bytes the files take.",
        "Open the file at a path for reading only.",
        "Not a word of this inner docstring is kept.",
    ]
    assert found[0].text == (
        "def size(self) -> int:\n    total = 0\n    for name in self.names:\n"
        "        total += os.stat(name).st_size\n    return total"
    )
    assert "docstring" not in found[1].text


def test_neither_a_function_nor_a_query_comes_twice() -> None:
    functions = list(find_documented(SOURCE, "store"))
    again = find_documented(SOURCE.replace("total", "count").replace("How many bytes", "The number of bytes"), "b")
    seen: set[str] = set()
    assert list(drop_duplicates(iter(functions), seen)) == functions
    assert list(drop_duplicates(again, seen)) == []  # the same tree; the same query; the same inner function


FUNCTION = """def area(shape, unit="m", *rest, scale=1):
    width = shape.width
    height = 2
    label = f"{unit} of {scale}"
    try:
        product = width * height
    except ValueError as error:
        raise TypeError(unit) from error
    names = [part for part in rest if part]
    return convert(product, unit=unit, names=names), label"""


def test_a_clone_differs_in_local_names_and_in_the_order_of_what_is_independent() -> None:
    clones = {clone(FUNCTION, np.random.default_rng(seed)) for seed in range(20)}
    first = {text.split("\n")[1].partition(" = ")[2] for text in clones if text}
    assert first == {"2"} | {text for text in first if text.endswith(".width")}
    assert len(first) > 1  # both orders
    for text in clones:
        assert text is not None
        tree = ast.parse(text)
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
            n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)
        }
        assert not names & {"shape", "width", "height", "rest", "product", "part", "names"}
        assert names >= {"unit", "scale", "error", "convert", "ValueError"}  # in a string, handled, or not its own
        assert "unit=unit, names=" in text
        assert ".width" in text
        assert text.startswith("def ")
        assert not text.startswith("def area(")


RUN = """def total(first, second, third):
    a = first + 1
    b = second * 2
    c = a + b
    d = 7
    for x in range(third):
        e = x
        f = 3
        c = c + e * f - d
    return [a, b, c]"""


@pytest.mark.parametrize("seed", range(10))
def test_a_clone_computes_the_same(seed: int) -> None:
    results = []
    for text in (RUN, clone(RUN, seeds.create_generator(seed, "clone", 0))):
        space: dict[str, object] = {}
        exec(str(text), space)
        results.append(space[str(text)[4:].partition("(")[0]](3, 5, 4))  # type: ignore[operator]
    assert results[0] == results[1]
    assert clone(RUN, seeds.create_generator(seed, "clone", 0)) == clone(RUN, seeds.create_generator(seed, "clone", 0))


def test_a_clone_is_called_what_another_function_is_as_far_as_names_reach() -> None:
    names = find_own_names(FUNCTION)
    assert names == ["area", "height", "label", "names", "part", "product", "rest", "shape", "width"]
    text = clone(RUN, np.random.default_rng(0), names)
    assert text is not None
    assert set(find_own_names(text)) <= {*names, *(f"{stem}_{i}" for stem in STEMS for i in range(10))}
    assert len(set(find_own_names(text)) & {*names}) == 9
    assert len(find_own_names(text)) == len(find_own_names(RUN)) == 11
    recursive = "async def walk(node):\n    left = node\n    return await walk(left)"
    found = clone(recursive, np.random.default_rng(1), ["one", "two", "three"])
    assert found is not None
    assert "walk" not in found
    assert (
        found.count(find_own_names(found)[0])
        + found.count(find_own_names(found)[1])
        + found.count(find_own_names(found)[2])
        == 6
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("a = 1\nb = 2", True),
        ("a = 1\nb = a", False),
        ("a = b\nb = 2", False),
        ("a = 1\na = 2", False),
        ("a = f()\nb = 2", False),
        ("a.x = 1\nb = 2", False),
        ("a += 1\nb = 2", False),
        ("a: int = 1\nb = 2", True),
    ],
)
def test_only_what_gives_the_same_in_either_order_is_independent(code: str, expected: bool) -> None:
    assert is_independent(*ast.parse(code).body) is expected


def test_what_has_no_names_of_its_own_has_no_clone() -> None:
    assert clone("def f(self):\n    return self.x", np.random.default_rng(0)) is None
    assert clone("x = 1", np.random.default_rng(0)) is None
    assert clone("def f(:", np.random.default_rng(0)) is None
