"""F1 of words: the harmonic mean of precision and recall of the words that two answers share.

Words are counted as in SQuAD (Rajpurkar et al., arXiv 1606.05250): in lower case, without punctuation and articles.
torchmetrics compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.models.answers.metric import Metric


@dataclass(frozen=True)
class F1(Metric):
    """F1 of the words that an answer shares with a right one, as in SQuAD."""

    def score(self, said: str, right: Sequence[str]) -> float:
        """Return the highest F1 among the right answers, 0 to 1."""
        from torchmetrics.functional.text.squad import squad

        target = {"answers": {"answer_start": [0] * len(right), "text": list(right)}, "id": "0"}
        found = squad({"prediction_text": said, "id": "0"}, target)  # type: ignore[arg-type]
        return float(found["f1"]) / 100


part = F1
