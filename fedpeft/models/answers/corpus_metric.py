"""Metrics of translations that the library sacrebleu computes over all answers together.

BLEU and chrF count n-grams over the whole test set, so their values are not means over sentences. The library reports
them from 0 to 100. They are divided by 100 here, as other metrics go from 0 to 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from fedpeft.errors import require_extra
from fedpeft.models.answers.metric import Metric


class CorpusMetric(Metric):
    """A metric of sacrebleu, over one answer or all of them."""

    @abstractmethod
    def create_scorer(self, *, single: bool) -> Any:
        """Return sacrebleu's metric, for a single answer if `single`."""

    def check(self) -> None:
        """Raise AssetError if sacrebleu is missing."""
        require_extra("sacrebleu", "evaluate", "BLEU and chrF")

    def score(self, said: str, right: Sequence[str]) -> float:
        """Return the score of one answer, 0 to 1."""
        return _convert_score(self.create_scorer(single=True).sentence_score(said, list(right)))

    def score_all(self, said: Sequence[str], right: Sequence[Sequence[str]]) -> float:
        """Return the score of all answers together, 0 to 1."""
        most = max(len(answers) for answers in right)
        columns = [[answers[i] if i < len(answers) else None for answers in right] for i in range(most)]
        return _convert_score(self.create_scorer(single=False).corpus_score(list(said), columns))


def _convert_score(found: Any) -> float:
    """Return a score of sacrebleu as a number from 0 to 1; its rounding may exceed 100."""
    return min(1.0, float(found.score) / 100)
