"""Review of Python functions from open-source packages: does a hunk contain a defect, and where?

    def count(rows, limit):                          -> defect, if it reads `<=` here, but the package has `<`
        found = 0
        for row in rows[: limit]:
            if row.size <= limit:
                found += 1

The functions, their packages and the split are those of `code_types`. The defects are synthetic: seeded mutations
(`fedpeft.data.code_mutations`). Each function gives one hunk, about half of them with a defect. Without a defect, the
hunk is cut where the same draw would have planted it, so that its place reveals nothing.

A hunk has the function's first line and `context` lines on either side of the defect, as `git diff` prints them. With
`where`, each word of the hunk has a label instead: DEFECT marks changed words, or the word after deleted ones.
Functions with f-strings are left out then, because versions of Python split these differently.
"""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.data.code_mutations import SYNTHETIC, Defect, plant_defect
from fedpeft.data.datasets.code_names import LONGEST, WORDS
from fedpeft.data.datasets.code_types import (
    build_labeled_rows,
    build_text_rows,
    create_generator,
    read_all,
    split_by_package,
)
from fedpeft.data.python_functions import Function
from fedpeft.data.rows import Dataset
from fedpeft.parts import setting

LABELS = ("correct", "defect")

TAGS = ("O", "B-DEFECT", "I-DEFECT")


@dataclass(frozen=True)
class CodeReview:
    """Hunks of functions, about half of them with a synthetic defect."""

    package_rows: int = setting(300, "most functions of a package", low=10, high=10_000)
    characters: int = setting(1500, "functions with a longer text are left out", low=80, high=100_000)
    context: int = setting(3, "lines before and after the defect", low=0, high=1000)
    where: bool = setting(False, "label the words of the defect instead of the hunk")
    seed: int = setting(0, "seed of the defects; not the run's seed", low=0)

    suited_partition: ClassVar[str] = "natural"

    @property
    def suited_head(self) -> str | None:
        """The default start of the head."""
        return "zero" if self.where else None

    def load(self) -> Dataset:
        """Return hunks with a label each, or their words with labels; owners are packages.

        The first use fetches 30 MB, as `code_types` does.

        Raises:
            AssetError: a package can't be fetched.
            DataError: no function is left.
        """
        names: tuple[str, ...]
        if self.where:
            words, held_words = split_by_package(read_all(), self.characters, self._build_words)
            task, names, train, test = "token_labels", TAGS, build_text_rows(words), build_text_rows(held_words)
        else:
            hunks, held_hunks = split_by_package(read_all(), self.characters, self._build_hunks)
            task, names = "classification", LABELS
            train, test = build_labeled_rows(hunks), build_labeled_rows(held_hunks)
        return Dataset("code_review", "text", task, train, test, names, "minilm", notes=(SYNTHETIC,))

    def _build_hunks(self, package: str, functions: Sequence[Function]) -> Iterator[tuple[str, int]]:
        for text, defect, is_defective in self._plant_defects(package, functions):
            lines = text.split("\n")
            yield "\n".join(lines[line] for line in self._find_hunk(text, defect)), int(is_defective)

    def _build_words(self, package: str, functions: Sequence[Function]) -> Iterator[str]:
        return (self._pack_words(*example) for example in self._plant_defects(package, functions))

    def _plant_defects(self, package: str, functions: Sequence[Function]) -> Iterator[tuple[str, Defect, bool]]:
        """Yield functions, the defect that was drawn for each, and whether the text has it."""
        count = 0
        for function in functions:
            if self.where and _has_f_string(function.text):
                continue
            random = create_generator(self.seed, package, function)
            is_defective, defect = bool(random.random() < 0.5), plant_defect(function.text, random)
            if defect is None:
                continue
            yield defect.text if is_defective else function.text, defect, is_defective
            count += 1
            if count == self.package_rows:
                return

    def _find_hunk(self, text: str, defect: Defect) -> list[int]:
        """Return the numbers of the hunk's lines, from 0."""
        first, last = defect.line - self.context, defect.line + self.context
        return [line for line in range(text.count("\n") + 1) if line == 0 or first <= line <= last]

    def _pack_words(self, text: str, defect: Defect, is_defective: bool) -> str:
        """Return the hunk's words and tags as a row (`fedpeft.models.tasks.token_labels`)."""
        hunk = {line + 1 for line in self._find_hunk(text, defect)}
        starts = [0]
        for line in text.split("\n"):
            starts.append(starts[-1] + len(line) + 1)
        first, last = defect.edit.start, defect.edit.start + max(1, len(defect.edit.new))
        words: list[str] = []
        tags: list[int] = []
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in WORDS or token.start[0] not in hunk:
                continue
            begin, end = (starts[line - 1] + column for line, column in (token.start, token.end))
            is_changed = is_defective and begin < last and end > first
            follows_changed = bool(tags and tags[-1])
            tags.append(1 + follows_changed if is_changed else 0)
            words.append(token.string[:LONGEST])
        return json.dumps({"words": words, "tags": tags})


def _has_f_string(text: str) -> bool:
    return any(isinstance(node, ast.JoinedStr) for node in ast.walk(ast.parse(text)))


part = CodeReview
