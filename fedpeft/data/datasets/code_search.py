"""Docstrings and their functions, out of the source of open-source packages: which function does what is said?

The packages, their split and the cuts are those of `code_types`. A query is the first paragraph of a docstring, at most
`WORDS` words, its document the function without docstrings, decorators and comments. Of functions with the same
fingerprint, or the same query, anywhere in the list only the first counts, and those of test packages come first: no
document, and no query, is in both parts. Of each package at most `package_rows` are taken, chosen by hash.

Owners are packages.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedpeft.data.datasets.code_types import HELD_OUT, compute_digest, read_packages
from fedpeft.data.python_functions import Definition, SourceFile, compute_fingerprint, is_stub, read_modules
from fedpeft.data.rows import Dataset, Rows
from fedpeft.data.text_pairs import pack_pair
from fedpeft.errors import DataError
from fedpeft.families import TASKS
from fedpeft.parts import setting

WORDS = (4, 60)
"""Of a query, at least and at most; a longer one is cut."""

SECTION = re.compile(r"\n\s*\n|\n\s*(?:Args|Arguments|Parameters|Returns|Raises|Yields|Example)s?\s*:|\n\s*[:@]\w")
"""Where the first paragraph ends."""

READING = 1
"""Counted up when a change of the reader makes other pairs of the same files."""


@dataclass(frozen=True)
class Documented:
    """A function with what its docstring says.

    Attributes:
        name: dotted, with the line.
        query: the first paragraph of the docstring, on one line.
        text: the function's source, cut.
        fingerprint: as of `fedpeft.data.python_functions.Function`.
    """

    name: str
    query: str
    text: str
    fingerprint: str


@dataclass(frozen=True)
class CodeSearch:
    """Functions that are to be found by their docstrings."""

    package_rows: int = setting(100, "at most so many functions of a package", low=10, high=10_000)
    characters: int = setting(1500, "functions with a longer text are left out", low=80, high=100_000)
    task: str = setting("retrieval", "loss and its settings: retrieval(loss=sigmoid, scale=20)", nested=TASKS)

    suited_partition: ClassVar[str] = "natural"

    def load(self) -> Dataset:
        """Pairs, owners are packages; fetched (30 MB) on first use.

        Raises:
            AssetError: a package can't be fetched.
            DataError: no function is left.
        """
        train: list[tuple[Documented, str]] = []
        test: list[tuple[Documented, str]] = []
        held = {package.name for package in HELD_OUT}
        for name, functions in read_all().items():
            chosen = [f for f in functions if len(f.text) <= self.characters]
            chosen = sorted(chosen, key=lambda f: compute_digest(f"{name}/{f.name}"))[: self.package_rows]
            (test if name in held else train).extend((f, name) for f in sorted(chosen, key=lambda f: f.name))
        if not train or not test:
            raise DataError(f"FP3029 no function has at most {self.characters} characters; allow more (characters)")
        return Dataset("code_search", "text", self.task, build_rows(train), build_rows(test), None, "minilm")


def read_all() -> dict[str, list[Documented]]:
    """The pairs of each package, no two alike: those of test packages first; read once and kept in the cache."""
    return read_packages("code_search", READING, Documented, find_documented_below, drop_duplicates)


def find_documented_below(folder: Path) -> Iterator[Documented]:
    """The documented functions of all files below `folder`, in the order of their paths."""
    for module, source in read_modules(folder):
        yield from find_documented(source, module)


def find_documented(source: str, module: str) -> Iterator[Documented]:
    """The functions in the source of a module whose docstring says something, outer ones first."""
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
            yield Documented(name, query, text, compute_fingerprint(definition))


def get_first_paragraph(definition: Definition) -> str | None:
    """What the docstring says first, on one line and without sections of arguments; None: less than `WORDS` words."""
    words = SECTION.split(ast.get_docstring(definition) or "")[0].split()
    return " ".join(words[: WORDS[1]]) if len(words) >= WORDS[0] else None


def drop_duplicates(functions: Iterator[Documented], seen: set[str]) -> Iterator[Documented]:
    """Those neither whose fingerprint nor whose query is in `seen`, where both are from then on."""
    for function in functions:
        marks = {function.fingerprint, re.sub(r"\W+", " ", function.query.lower()).strip()}
        if not marks & seen:
            seen |= marks
            yield function


def build_rows(functions: Sequence[tuple[Documented, str]]) -> Rows:
    """Pairs and owners as `Rows`; each is the only one that is right."""
    return Rows([pack_pair(f.query, f.text) for f, _ in functions], None, np.array([owner for _, owner in functions]))


part = CodeSearch
