"""Generated text for causal language modeling in tests: owners with individual habits of word use.

Each owner's text is a Markov chain over the invented vocabulary. With probability `own`, a word's successor is one of
the three that this owner prefers after it. Otherwise it is one of the three that all owners share. So the shared
successors are common to all clients, and the preferred ones differ. Nothing is fetched, and no license applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import Dataset, Rows
from fedpeft.parts import setting

SUCCESSORS = 3


@dataclass(frozen=True)
class TinyLM:
    """Generated sequences with owners."""

    owners: int = setting(10, "number of owners", low=1, high=10_000)
    rows: int = setting(30, "training examples of an owner; some have up to half more or less", low=2, high=10_000)
    test_rows: int = setting(4, "test examples of an owner", low=1, high=10_000)
    own: float = setting(0.3, "probability of an owner's own successor: 0 makes the owners alike", low=0.0, high=1.0)
    seed: int = setting(0, "seed of the text; not the run's seed", low=0)

    suited_partition: ClassVar[str] = "natural"

    def load(self) -> Dataset:
        """Return examples of 8 to 24 words, grouped by owner."""
        generator = np.random.default_rng([self.seed, 21])
        shared = _draw_successors(generator)
        train: list[tuple[str, str]] = []
        test: list[tuple[str, str]] = []
        for owner in range(self.owners):
            preferred = _draw_successors(generator)
            count = self.rows + int(generator.integers(-(self.rows // 2), self.rows // 2 + 1))
            name = f"owner {owner:04d}"
            train += [(self._write_text(preferred, shared, generator), name) for _ in range(count)]
            test += [(self._write_text(preferred, shared, generator), name) for _ in range(self.test_rows)]
        return Dataset(
            name="tiny_lm",
            kind="text",
            task="causal_lm",
            train=Rows([text for text, _ in train], None, np.array([owner for _, owner in train])),
            test=Rows([text for text, _ in test], None, np.array([owner for _, owner in test])),
            label_names=None,
            default_model="tiny_lm",
        )

    def _write_text(
        self, preferred: NDArray[np.int64], shared: NDArray[np.int64], generator: np.random.Generator
    ) -> str:
        length = int(generator.integers(8, 25))
        picks = generator.integers(SUCCESSORS, size=length)
        own = generator.random(length) < self.own
        word = int(generator.integers(len(WORDS)))
        words = []
        for pick, is_own in zip(picks, own, strict=True):
            words.append(WORDS[word])
            word = int((preferred if is_own else shared)[word, pick])
        return " ".join(words)


def _draw_successors(generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw three successors of each word, int64 (vocabulary, 3)."""
    return generator.integers(len(WORDS), size=(len(WORDS), SUCCESSORS))


part = TinyLM
