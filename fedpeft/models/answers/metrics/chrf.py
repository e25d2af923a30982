"""chrF: the F-score of n-grams of characters, with twice the weight on recall (Popovic, WMT 2015).

The library sacrebleu computes it over all answers together. It needs `pip install 'fedpeft[evaluate]'`. It suits
languages with many word forms, and answers whose words are nearly right. `word_order=2` is chrF++.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedpeft.models.answers.corpus_metric import CorpusMetric
from fedpeft.parts import setting


@dataclass(frozen=True)
class Chrf(CorpusMetric):
    """chrF of all answers together."""

    word_order: int = setting(0, "longest n-gram of words that counts, too; 2 is chrF++", low=0, high=4)
    lowercase: bool = setting(False, "ignore the case of letters")

    def create_scorer(self, *, single: bool) -> Any:
        """Return sacrebleu's chrF."""
        from sacrebleu.metrics.chrf import CHRF

        return CHRF(word_order=self.word_order, lowercase=self.lowercase)


part = Chrf
