"""Docstrings and their functions from open-source packages: which function does a docstring describe?

The packages, their split and the length limits are those of `code_types`. A query is the first paragraph of a
docstring, cut to `WORDS` words. Its document is the function without docstrings, decorators and comments.

Only the first of several functions with the same fingerprint or query counts; test packages come first. So no document
and no query is in both parts. At most `package_rows` functions of a package are taken, chosen by hash. Owners are
packages.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedpeft.data.datasets.code_types import read_packages, split_by_package
from fedpeft.data.python_functions import Definition, SourceFile, compute_fingerprint, is_stub, read_modules
from fedpeft.data.rows import Dataset, Rows
from fedpeft.data.text_pairs import pack_pair
from fedpeft.parts import setting
from fedpeft.parts.families import TASKS

WORDS = (4, 60)
"""Fewest and most words of a query; a longer one is cut."""

SECTION = re.compile(r"\n\s*\n|\n\s*(?:Args|Arguments|Parameters|Returns|Raises|Yields|Example)s?\s*:|\n\s*[:@]\w")
"""Pattern of the end of a docstring's first paragraph."""

READING = 1
"""Version of the reader; increase it if a change yields other pairs from the same files."""


@dataclass(frozen=True)
class DocumentedFunction:
    """A function with the description from its docstring.

    Attributes:
        name: dotted, with the line.
        query: the first paragraph of the docstring, on one line.
        text: the function's source, cut.
        fingerprint: that of `fedpeft.data.python_functions.Function`.
    """

    name: str
    query: str
    text: str
    fingerprint: str


@dataclass(frozen=True)
class CodeSearch:
    """Functions, to be found by their docstrings."""

    package_rows: int = setting(100, "most functions of a package", low=10, high=10_000)
    characters: int = setting(1500, "functions with a longer text are left out", low=80, high=100_000)
    task: str = setting("retrieval", "loss and its settings: retrieval(loss=sigmoid, scale=20)", nested=TASKS)

    suited_partition: ClassVar[str] = "natural"

    def load(self) -> Dataset:
        """Return pairs of docstring and function; owners are packages. The first use fetches 30 MB.

        Raises:
            AssetError: a package can't be fetched.
            DataError: no function is left.
        """
        train, test = split_by_package(read_all(), self.characters, self._choose_functions)
        return Dataset("code_search", "text", self.task, build_rows(train), build_rows(test), None, "minilm")

    def _choose_functions(self, _: str, functions: Sequence[DocumentedFunction]) -> list[DocumentedFunction]:
        return sorted(functions[: self.package_rows], key=lambda function: function.name)


def read_all() -> dict[str, list[DocumentedFunction]]:
    """Return each package's pairs without duplicates, test packages first; they are read once and cached."""
    return read_packages("code_search", READING, DocumentedFunction, find_documented_below, drop_duplicates)


def find_documented_below(folder: Path) -> Iterator[DocumentedFunction]:
    """Yield the documented functions of all files below `folder`, in the order of their paths."""
    for module, source in read_modules(folder):
        yield from find_documented(source, module)


def find_documented(source: str, module: str) -> Iterator[DocumentedFunction]:
    """Yield the functions of a module that have a descriptive docstring, outer ones first."""
    file = SourceFile.parse(source)
    if file is None:
        return
    for definition in file.definitions:
        query = get_first_paragraph(definition)
        if query is None or definition.name.startswith(("__", "test")) or is_stub(definition):
            continue
        text = file.get_text(definition, returns=True)
        if text is not None:
            name = f"{module}.{definition.name}:{definition.lineno}"
            yield DocumentedFunction(name, query, text, compute_fingerprint(definition))


def get_first_paragraph(definition: Definition) -> str | None:
    """Return the docstring's first paragraph on one line, or None if it has fewer than `WORDS[0]` words."""
    words = SECTION.split(ast.get_docstring(definition) or "")[0].split()
    return " ".join(words[: WORDS[1]]) if len(words) >= WORDS[0] else None


def drop_duplicates(functions: Iterator[DocumentedFunction], seen: set[str]) -> Iterator[DocumentedFunction]:
    """Yield functions whose fingerprint and query are not in `seen`, and add both to it."""
    for function in functions:
        marks = {function.fingerprint, re.sub(r"\W+", " ", function.query.lower()).strip()}
        if not marks & seen:
            seen |= marks
            yield function


def build_rows(functions: Sequence[tuple[DocumentedFunction, str]]) -> Rows:
    """Return pairs and owners as `Rows`; each query has one correct document."""
    return Rows([pack_pair(f.query, f.text) for f, _ in functions], None, np.array([owner for _, owner in functions]))


part = CodeSearch
