"""Words of similar meaning: the nearest word in the base's own embeddings, if its cosine is at least 0.7.

The candidates follow TextFooler (Jin et al., AAAI 2020, arXiv 1907.11932), with the frozen base's embeddings instead of
vectors that were made for synonyms. Antonyms are near each other in such embeddings, so this is harder than synonyms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.trust.corruption import FindSynonym, WordByWord


@dataclass(frozen=True)
class Synonyms(WordByWord):
    """Words replaced by their nearest words."""

    def corrupt_word(self, word: str, random: np.random.Generator, near: FindSynonym) -> str:
        """Return the nearest word; see the module."""
        return near(word)


part = Synonyms
