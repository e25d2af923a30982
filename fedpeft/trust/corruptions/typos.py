"""Typing errors: in a word two letters are swapped, one is dropped, one doubled, or one replaced by an adjacent key.

The first letter stays, since people can still read such words. Pruthi et al. (ACL 2019, arXiv 1905.11268) also keep the
last letter, which can change here. Words of fewer than four letters do not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.trust.corruption import FindSynonym, WordByWord

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
SHORTEST = 4


@dataclass(frozen=True)
class Typos(WordByWord):
    """Mistyped words."""

    def corrupt_word(self, word: str, random: np.random.Generator, near: FindSynonym) -> str:
        """Put one typing error into the word; see the module."""
        if len(word) < SHORTEST:
            return word
        slip, at = int(random.integers(4)), int(random.integers(1, len(word)))
        if slip == 0:
            at = min(at, len(word) - 2)
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        if slip == 1:
            return word[:at] + word[at + 1 :]
        if slip == 2:
            return word[:at] + word[at] + word[at:]
        return word[:at] + draw_neighbor_key(word[at], random) + word[at + 1 :]


def draw_neighbor_key(letter: str, random: np.random.Generator) -> str:
    """Draw a letter from the keys beside `letter` in its row of the keyboard; other characters stay unchanged."""
    for row in KEYBOARD:
        place = row.find(letter.lower())
        if place >= 0:
            others = row[max(0, place - 1) : place] + row[place + 1 : place + 2]
            drawn = others[int(random.integers(len(others)))]
            return drawn.upper() if letter.isupper() else drawn
    return letter


part = Typos
