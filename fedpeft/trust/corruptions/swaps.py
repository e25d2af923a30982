"""Words in another order: each word may change places with the next one."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from fedpeft.trust.corruption import Corruption, FindSynonym


@dataclass(frozen=True)
class Swaps(Corruption):
    """Swapped adjacent words."""

    def corrupt_text(self, text: str, strength: float, random: np.random.Generator, near: FindSynonym) -> str:
        """Swap adjacent words; a word moves at most once."""
        pieces = re.split(r"(\s+)", text)
        place = 0
        while place + 2 < len(pieces):
            if random.random() < strength and pieces[place] and pieces[place + 2]:
                pieces[place], pieces[place + 2] = pieces[place + 2], pieces[place]
                place += 2
            place += 2
        return "".join(pieces)


part = Swaps
