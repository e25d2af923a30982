"""Names in Python functions: a label for each word of a function from open-source packages.

    def  scaled ( values , by )  :  return  values . copy ( ) . times ( by = by )
    O    FUN    O ARG    O ARG O O  O       ARG    O ATT  O O O ATT   O KEY O ARG O

The functions, their packages and the split are those of `code_types`. Words are Python's own tokens, without layout and
comments. Labels are spans in IOB2:

- FUN: the name of a function that is defined.
- ARG: an argument, where it is declared or used.
- VAR: a local variable.
- KEY: the name of an argument in a call.
- ATT: a chain of attributes `.b.c`, the only spans of several words.

Names of modules, classes and builtins, and all else, are outside (O). Labels come from the syntax tree; a default value
is read as if it were inside its function. Functions with f-strings are left out, because versions of Python split these
into different words.
"""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.data.datasets.code_types import build_text_rows, read_all, split_by_package
from fedpeft.data.python_functions import Function
from fedpeft.data.rows import Dataset
from fedpeft.parts import setting

LABELS = ("O", "B-ARG", "B-ATT", "I-ATT", "B-FUN", "B-KEY", "B-VAR")

WORDS = (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP)

LONGEST = 40
"""Most characters of a word; longer ones, which are strings, are cut."""

Place = tuple[int, int]
"""Line, from 1, and column of a name."""


@dataclass(frozen=True)
class CodeNames:
    """Names in Python functions, each with its role."""

    package_rows: int = setting(150, "most functions of a package", low=10, high=10_000)
    characters: int = setting(600, "functions with a longer text are left out", low=80, high=100_000)

    suited_partition: ClassVar[str] = "natural"
    suited_head: ClassVar[str] = "zero"

    def load(self) -> Dataset:
        """Return examples of words and tags; owners are packages. The first use fetches 30 MB, as `code_types` does.

        Raises:
            AssetError: a package can't be fetched.
            DataError: no function is left.
        """
        train, test = split_by_package(read_all(), self.characters, self._build_rows)
        return Dataset(
            "code_names", "text", "token_labels", build_text_rows(train), build_text_rows(test), LABELS, "minilm"
        )

    def _build_rows(self, _: str, functions: Sequence[Function]) -> list[str]:
        return [row for function in functions if (row := build_row(function.text)) is not None][: self.package_rows]


def build_row(text: str) -> str | None:
    """Return a function's words and tags as a row (`fedpeft.models.tasks.token_labels`).

    Return None if it has f-strings or can't be parsed alone.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    if any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree)):
        return None
    kinds = dict(_find_names(tree))
    words: list[str] = []
    tags: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in WORDS:
            continue
        kind = "FUN" if words and words[-1] == "def" else kinds.get(token.start, "")
        if kind == "ATT" and len(words) > 1 and words[-1] == "." and tags[-2].endswith("-ATT"):
            tags[-1] = "I-ATT"
            tags.append("I-ATT")
        else:
            tags.append(f"B-{kind}" if kind else "O")
        words.append(token.string[:LONGEST])
    return json.dumps({"words": words, "tags": [LABELS.index(tag) for tag in tags]})


def _find_names(
    tree: ast.AST, arguments: frozenset[str] = frozenset(), local: frozenset[str] = frozenset()
) -> Iterator[tuple[Place, str]]:
    """Yield the place and role of each name; inner functions see the names of outer ones, as in Python."""
    for node in ast.iter_child_nodes(tree):
        own, inner = arguments, local
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                declared = frozenset(_list_arguments(node.args))
                stored = frozenset(_find_assigned(node))
                own, inner = (arguments - stored) | declared, (local - declared) | (stored - declared)
            case ast.arg():
                yield (node.lineno, node.col_offset), "ARG"
            case ast.Name(id=name) if name in own:
                yield (node.lineno, node.col_offset), "ARG"
            case ast.Name(id=name) if name in inner:
                yield (node.lineno, node.col_offset), "VAR"
            case ast.Attribute(attr=name):
                yield (node.end_lineno or 0, (node.end_col_offset or 0) - len(name)), "ATT"
            case ast.keyword(arg=str()):
                yield (node.lineno, node.col_offset), "KEY"
        yield from _find_names(node, own, inner)


def _list_arguments(given: ast.arguments) -> Iterator[str]:
    every = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
    return (argument.arg for argument in every if argument is not None)


def _find_assigned(function: ast.AST) -> Iterator[str]:
    """Yield names that a function assigns to, except inside inner functions."""
    for node in ast.iter_child_nodes(function):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() | ast.ClassDef():
                continue
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.ExceptHandler(name=str(name)):
                yield name
        yield from _find_assigned(node)


part = CodeNames
