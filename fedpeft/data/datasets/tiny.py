"""A generated text-classification set for tests: a small vocabulary of invented words, classes that overlap.

A word is drawn from one distribution that all classes share (Zipf) or, with probability `signal`, from the class's own
(Dirichlet, half of its mass on words that other classes use too). Texts have 6 to 24 words. Each example has one of 12
owners with unequal shares. Nothing is fetched; equal settings give equal examples. No license applies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import Dataset, Rows
from fedpeft.parts import setting

OWNERS = 12


@dataclass(frozen=True)
class Tiny:
    """Generated texts with overlapping classes."""

    rows: int = setting(600, "training examples", low=2, high=1_000_000)
    test_rows: int = setting(200, "test examples", low=1, high=1_000_000)
    classes: int = setting(4, "number of classes", low=2, high=100)
    signal: float = setting(0.5, "probability that a word comes from its class's own distribution", low=0.0, high=1.0)
    seed: int = setting(0, "seed of the distributions and texts; not the run's seed", low=0)

    def load(self) -> Dataset:
        """Return the examples, equal for equal settings on every machine with the same numpy."""
        generator = np.random.default_rng([self.seed, 20])
        vocabulary = len(WORDS)
        shared = generator.permutation(1.0 / np.arange(2, vocabulary + 2))
        own = generator.dirichlet(np.full(vocabulary, 0.1), size=self.classes)
        own = 0.5 * own + 0.5 * np.roll(own, 1, axis=0)  # adjacent classes share half of their words
        words = (1 - self.signal) * shared / shared.sum() + self.signal * own
        owner_shares = generator.dirichlet(np.full(OWNERS, 2.0))
        return Dataset(
            name="tiny",
            kind="text",
            task="classification",
            train=self._draw(self.rows, words, owner_shares, generator),
            test=self._draw(self.test_rows, words, owner_shares, generator),
            label_names=tuple(f"class {c}" for c in range(self.classes)),
            default_model="tiny",
        )

    def _draw(
        self, rows: int, words: NDArray[np.float64], owner_shares: NDArray[np.float64], generator: np.random.Generator
    ) -> Rows:
        """Draw texts from the word distributions (classes, vocabulary); classes are balanced, in random order."""
        labels = generator.permutation(np.arange(rows) % self.classes)
        lengths = generator.integers(6, 25, size=rows)
        up_to = words.cumsum(axis=1)
        up_to /= up_to[:, -1:]
        texts = [
            " ".join(WORDS[w] for w in up_to[label].searchsorted(generator.random(length), side="right"))
            for label, length in zip(labels, lengths, strict=True)
        ]
        owners = np.array([f"owner {o:02d}" for o in range(OWNERS)])
        return Rows(texts, labels.astype(np.int64), owners[generator.choice(OWNERS, size=rows, p=owner_shares)])


part = Tiny
