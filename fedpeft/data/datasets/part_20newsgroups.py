"""20 Newsgroups: 11,293 training and 7,528 test messages of 20 news groups, nearly balanced (the by-date split).

This is the usual text task of federated PEFT papers. A linear probe on frozen MiniLM features reaches 0.74 at 64
tokens. Source and license: see `fedpeft.data.orange_corpora`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.data import orange_corpora
from fedpeft.data.rows import Dataset


@dataclass(frozen=True)
class Newsgroups20:
    """The standard split; no settings."""

    def load(self) -> Dataset:
        """Texts with one label each; fetched (38 MB) on first use."""
        return orange_corpora.load("20newsgroups", "20newsgroups", "minilm")


part = Newsgroups20
