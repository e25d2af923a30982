"""Generated pairs for sequence to sequence: a sentence, and its words in another language in reverse order.

The other language is a dictionary: each word has one translation, and no two words share one. Owners differ in the
words that they use often. Nothing is fetched, and no license applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import Dataset, Rows
from fedpeft.data.text_to_text import pack_pair
from fedpeft.parts import setting

SHORTEST, LONGEST = 2, 5


@dataclass(frozen=True)
class TinySeq2Seq:
    """Generated sentences with owners and translations."""

    owners: int = setting(8, "number of owners", low=1, high=10_000)
    rows: int = setting(40, "training examples of an owner", low=2, high=100_000)
    test_rows: int = setting(6, "test examples of an owner", low=1, high=10_000)
    words: int = setting(16, "words of the language", low=4, high=len(WORDS) // 2)
    reverse: bool = setting(True, "whether the translation reverses the order of words")
    seed: int = setting(0, "seed of the texts; not the run's seed", low=0)

    suited_partition: ClassVar[str] = "natural"

    def load(self) -> Dataset:
        """Return sentences of 2 to 5 words with their translations, grouped by owner."""
        generator = np.random.default_rng([self.seed, 28])
        known = generator.permutation(len(WORDS))
        meaning = dict(zip(known[: self.words].tolist(), known[self.words : 2 * self.words].tolist(), strict=True))
        parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
        for owner in range(self.owners):
            chances = generator.dirichlet(np.full(self.words, 2.0))
            for name, count in (("train", self.rows), ("test", self.test_rows)):
                drawn = (known[: self.words][self._draw_sentence(chances, generator)] for _ in range(count))
                parts[name] += [(self._write_row(words.tolist(), meaning), f"owner {owner:04d}") for words in drawn]
        train, test = (Rows([row for row, _ in part], None, np.array([o for _, o in part])) for part in parts.values())
        return Dataset("tiny_seq2seq", "text", "seq2seq", train, test, None, "tiny_seq2seq")

    def _draw_sentence(self, chances: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
        return generator.choice(self.words, size=int(generator.integers(SHORTEST, LONGEST + 1)), p=chances)

    def _write_row(self, words: list[int], meaning: dict[int, int]) -> str:
        said = [WORDS[meaning[word]] for word in words]
        return pack_pair(" ".join(WORDS[word] for word in words), " ".join(said[::-1] if self.reverse else said))


part = TinySeq2Seq
