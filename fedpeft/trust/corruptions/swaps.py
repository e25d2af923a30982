"""Words in another order: each may change places with the next one."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from fedpeft.trust.corruption import Corruption, Neighbours


@dataclass(frozen=True)
class Swaps(Corruption):
    """Neighbouring words swapped."""

    def corrupt_text(self, text: str, strength: float, random: np.random.Generator, near: Neighbours) -> str:
        """See the module; a word that has moved stays where it is."""
        pieces = re.split(r"(\s+)", text)
        place = 0
        while place + 2 < len(pieces):
            if random.random() < strength and pieces[place] and pieces[place + 2]:
                pieces[place], pieces[place + 2] = pieces[place + 2], pieces[place]
                place += 2
            place += 2
        return "".join(pieces)


part = Swaps
