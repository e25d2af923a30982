"""Words of like meaning: the nearest word in the base's own embedding, where its cosine is at least 0.7.

After TextFooler's candidates (Jin et al., AAAI 2020, arXiv 1907.11932), from the frozen base's table instead of vectors
made for synonyms. Antonyms lie near each other in such tables, so this is a harder change than synonyms are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.trust.corruption import Neighbours, WordByWord


@dataclass(frozen=True)
class Synonyms(WordByWord):
    """Words replaced by their nearest neighbours."""

    def corrupt_word(self, word: str, random: np.random.Generator, near: Neighbours) -> str:
        """See the module."""
        return near(word)


part = Synonyms
