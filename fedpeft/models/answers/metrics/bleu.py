"""BLEU: the precision of n-grams of one to four words, with a penalty for short answers (Papineni et al., ACL 2002).

The library sacrebleu computes it over all answers together, as Post 2018 (arXiv:1804.08771, abstract only) proposes, so
that values of different papers can be compared. It needs `pip install 'fedpeft[evaluate]'`. A single answer is smoothed
and shorter n-grams count if it has no longer ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedpeft.models.answers.corpus_metric import CorpusMetric
from fedpeft.parts import setting

TOKENIZERS = ("13a", "intl", "char", "zh", "none")
"""Tokenizers of sacrebleu that need no download."""


@dataclass(frozen=True)
class Bleu(CorpusMetric):
    """BLEU of all answers together."""

    tokenize: str = setting("13a", "how sacrebleu splits texts into words", choices=TOKENIZERS)
    lowercase: bool = setting(False, "ignore the case of letters")

    def create_scorer(self, *, single: bool) -> Any:
        """Return sacrebleu's BLEU."""
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(tokenize=self.tokenize, lowercase=self.lowercase, effective_order=single)


part = Bleu
