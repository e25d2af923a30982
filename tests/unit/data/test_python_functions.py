"""Functions out of source files: what is cut, which types are told apart, which functions are alike."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fedpeft.data.python_functions import find_functions, find_functions_below, get_type

SOURCE = '''
"""A module -> with an arrow."""
import functools

class Shelf:
    @property
    @functools.cache
    def labels(self, wanted: list[str]) -> dict[str, int]:  # -> not this
        """What it is -> a docstring."""

        @functools.wraps(print)
        def inner(x: int) -> int:
            """Inner."""
            return x + 1  # a comment

        text = "# no comment -> é"
        return {text: inner(1)}

    def __len__(self) -> int:
        return 1

    def open(self) -> None:
        """Nothing is done."""
        ...

async def later(
    name: str,
) -> (
    "str | None"
):
    return name

def unknown() -> Shelf:
    return Shelf()

def bare():
    return 1
'''


def test_what_is_cut_and_what_is_left_out() -> None:
    found = {function.name.rpartition(".")[2].partition(":")[0]: function for function in find_functions(SOURCE, "m")}
    assert {name: function.type for name, function in found.items()} == {
        "later": "optional",
        "labels": "dict",
        "inner": "int",
    }
    assert found["labels"].text.splitlines() == [
        "def labels(self, wanted: list[str]):",
        "    def inner(x: int):",
        "        return x + 1",
        '    text = "# no comment -> ?"',
        "    return {text: inner(1)}",
    ]
    assert found["later"].text == "async def later(\n    name: str,\n):\n    return name"
    for function in found.values():
        ast.parse(function.text)


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        ("None", "none"),
        ("str", "str"),
        ("typing.List[int]", "list"),
        ("collections.abc.Sequence[int]", "list"),
        ("'Iterator[str]'", "iterator"),
        ("int | None", "optional"),
        ("int | str | None", "optional"),
        ("Optional[int]", "optional"),
        ("Union[int, None]", "optional"),
        ("Union[int, str]", None),
        ("int | str", None),
        ("Self", None),
        ("'not python ['", None),
    ],
)
def test_types(annotation: str, kind: str | None) -> None:
    assert get_type(ast.parse(annotation, mode="eval").body) == kind


def prints(source: str) -> list[str]:
    return [function.fingerprint for function in find_functions(source, "m")]


def test_alike_is_what_differs_in_names_literals_and_annotations_only() -> None:
    first = "def size(self, one: int) -> int:\n    total = one + 2\n    return self.count(total)\n"
    alike = (
        "@wraps\nasync def length(me, x) -> float:\n    'Says it.'\n    y: int = x + 3\n"
        "    return await me.count(y)  # so\n"
    )
    other = "def size(self, one: int) -> int:\n    total = one + 2\n    return self.weight(total)\n"
    assert prints(first) == prints(alike)
    assert prints(first) != prints(other)
    assert prints("def f() -> bool:\n    return True\n") != prints("def f() -> bool:\n    return False\n")


def test_files_that_are_not_read(tmp_path: Path) -> None:
    function = "def f() -> int:\n    return 1\n"
    for name in ("a.py", "tests/b.py", "_vendor/c.py", "test_d.py", "sub/e.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(function)
    (tmp_path / "broken.py").write_text("def f() -> int:\nreturn")
    (tmp_path / "newer.py").write_text("type Number = int\n" + function)
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n" + function.encode())
    assert [f.name for f in find_functions_below(tmp_path)] == ["a.f:1", "sub.e.f:1"]


def test_what_ends_no_line_in_python_moves_nothing():
    """A form feed between two definitions, as old sources have it, and lines that end as on Windows."""
    plain = "def one(a: int) -> int:\n    return a\n\n\nclass A:\n    def two(self) -> str:\n        return 'x'\n"
    expected = [found.text for found in find_functions(plain, "m")]
    assert len(expected) == 2
    assert [found.text for found in find_functions(plain.replace("\n\n\n", "\n\f\n\n"), "m")] == expected
    assert [found.text for found in find_functions(plain.replace("\n", "\r\n"), "m")] == expected
