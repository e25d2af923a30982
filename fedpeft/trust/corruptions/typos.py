"""Slips of the fingers: in a word two letters swapped, one dropped, one doubled, or one from beside it on the keyboard.

The first letter stays, as people read past such words (Pruthi et al., ACL 2019, arXiv 1905.11268); words of fewer than
four letters stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedpeft.trust.corruption import Neighbours, WordByWord

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
SHORTEST = 4


@dataclass(frozen=True)
class Typos(WordByWord):
    """Mistyped words."""

    def corrupt_word(self, word: str, random: np.random.Generator, near: Neighbours) -> str:
        """See the module."""
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
    """A letter that lies beside it in a row of the keyboard; what is no such letter, itself."""
    for row in KEYBOARD:
        place = row.find(letter.lower())
        if place >= 0:
            others = row[max(0, place - 1) : place] + row[place + 1 : place + 2]
            found = others[int(random.integers(len(others)))]
            return found.upper() if letter.isupper() else found
    return letter


part = Typos
