"""Clones of Python functions from open-source packages: do two functions do the same?

    def is_small(row, limit):                   # clone: renamed, reordered or rewritten
        return row.size < limit                 # near miss: the same with a defect, or a similar function
    # other:
    def check(item, most):
        return most > item.size

The functions, their packages and the split are those of `code_types`. Clones and defects are synthetic
(`fedpeft.data.code_clones`, `fedpeft.data.code_mutations`). Each function gives one pair, about half of them clones.

- clone: local names are those of a similar function. Half of the clones are also rewritten, if that is possible, and
  independent assignments change places.
- near miss: half of them are such clones with a defect. The others are the function of the same package that shares
  most words, with local names of the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.code_clones import clone, find_own_names, rewrite_statements
from fedpeft.data.code_mutations import plant_defect
from fedpeft.data.datasets.code_types import build_labeled_rows, create_generator, read_all, split_by_package
from fedpeft.data.python_functions import Function
from fedpeft.data.rows import Dataset
from fedpeft.parts import setting

LABELS = ("different", "clone")

BETWEEN = "\n# other:\n"
"""Text between the functions of a pair."""

MISSES = ("both", "defect", "similar")


@dataclass(frozen=True)
class CodeClones:
    """Pairs of functions, about half of them synthetic clones."""

    package_rows: int = setting(200, "most pairs of a package", low=10, high=10_000)
    characters: int = setting(400, "functions with a longer text are left out", low=80, high=100_000)
    misses: str = setting("both", "near misses: clones with a defect, similar functions, or both", choices=MISSES)
    seed: int = setting(0, "seed of the pairs; not the run's seed", low=0)

    suited_partition: ClassVar[str] = "natural"

    def load(self) -> Dataset:
        """Return pairs with a label each; owners are packages. The first use fetches 30 MB, as `code_types` does.

        Raises:
            AssetError: a package can't be fetched.
            DataError: no pair is left.
        """
        train, test = split_by_package(read_all(), self.characters, self._build_pairs)
        note = "synthetic: the clones and the defects of near misses are generated"
        return Dataset(
            "code_clones",
            "text",
            "classification",
            build_labeled_rows(train),
            build_labeled_rows(test),
            LABELS,
            "minilm",
            notes=(note,),
        )

    def _build_pairs(self, package: str, functions: Sequence[Function]) -> Iterator[tuple[str, int]]:
        chosen = functions[: self.package_rows]
        words = [set(re.findall(r"\w+", function.text)) for function in chosen]
        for place, function in enumerate(chosen):
            random = create_generator(self.seed, package, function)
            similar = _find_similar(words, place)
            if similar is None:
                continue
            other = chosen[similar].text
            is_clone = random.random() < 0.5
            is_similar = (
                not is_clone and self.misses != "defect" and (self.misses == "similar" or random.random() < 0.5)
            )
            if is_similar:
                second = clone(other, random, find_own_names(function.text))
            else:
                second = self._change(function.text, other, random, with_defect=not is_clone)
            if second is not None:
                yield f"{function.text}{BETWEEN}{second}", int(is_clone)

    def _change(self, text: str, other: str, random: np.random.Generator, with_defect: bool) -> str | None:
        """Return a clone with the local names of another function; or one with a defect, which is no clone."""
        if with_defect:
            defect = plant_defect(text, random)
            if defect is None:
                return None
            text = defect.text
        if random.random() < 0.5:
            text = rewrite_statements(text, random) or text
        return clone(text, random, find_own_names(other))


def _find_similar(words: Sequence[set[str]], place: int) -> int | None:
    """Return the place of the most similar set of words: most shared ones, relative to all; None: there is no other."""
    shares = [len(words[place] & other) / len(words[place] | other) for other in words]
    shares[place] = -1.0
    best = int(np.argmax(shares))
    return best if shares[best] >= 0 else None


part = CodeClones
