"""ROUGE-L: the longest common subsequence of words, as an F-measure (Lin, 2004), by the library rouge-score.

It needs `pip install 'fedpeft[evaluate]'`. The library splits texts into words of lower-case letters and digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedpeft.errors import require_extra
from fedpeft.models.answers.metric import Metric
from fedpeft.parts import setting


@dataclass(frozen=True)
class RougeL(Metric):
    """The longest common subsequence of words, as an F-measure."""

    stem: bool = setting(False, "reduce words to their stems first (Porter)")

    def check(self) -> None:
        """Raise AssetError if rouge-score is missing."""
        require_extra("rouge_score", "evaluate", "the metric rouge_l")

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer(["rougeL"], use_stemmer=self.stem)

    def score(self, said: str, right: Sequence[str]) -> float:
        """Return the highest F-measure among the right answers, 0 to 1."""
        return max(float(self._scorer.score(answer, said)["rougeL"].fmeasure) for answer in right)


part = RougeL
