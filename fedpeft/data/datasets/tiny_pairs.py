"""Generated pairs of texts for tests: a query of a few words, and a document that contains most of them.

A document has 8 to 16 invented words, drawn uniformly. Its query has 3 to 5 of these and one random word. Each example
has one of 12 owners. Nothing is fetched; equal settings give equal examples. No license applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import Dataset, Rows
from fedpeft.data.text_pairs import pack_pair
from fedpeft.parts import setting
from fedpeft.parts.families import TASKS

OWNERS = 12


@dataclass(frozen=True)
class TinyPairs:
    """Generated pairs of query and document."""

    rows: int = setting(240, "training examples", low=24, high=1_000_000)
    test_rows: int = setting(60, "test examples", low=2, high=100_000)
    seed: int = setting(0, "seed of the texts; not the run's seed", low=0)
    task: str = setting("retrieval", "loss and its settings: retrieval(loss=sigmoid, scale=20)", nested=TASKS)

    suited_partition: ClassVar[str] = "natural"

    def load(self) -> Dataset:
        """Return the pairs, equal for equal settings on every machine with the same numpy."""
        generator = np.random.default_rng([self.seed, 21])
        train, test = (self._draw(count, generator) for count in (self.rows, self.test_rows))
        return Dataset("tiny_pairs", "text", self.task, train, test, None, "tiny")

    def _draw(self, rows: int, generator: np.random.Generator) -> Rows:
        pairs = []
        for _ in range(rows):
            document = generator.choice(len(WORDS), size=generator.integers(8, 17))
            query = [*generator.choice(document, size=generator.integers(3, 6)), generator.integers(len(WORDS))]
            pairs.append(pack_pair(*(" ".join(WORDS[w] for w in words) for words in (query, document))))
        return Rows(pairs, None, np.array([f"owner {o:02d}" for o in np.arange(rows) % OWNERS]))


part = TinyPairs
