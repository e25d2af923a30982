"""F1 of words: the harmonic mean of precision and recall of the words that answer and right answer share.

As SQuAD counts them (Rajpurkar et al., arXiv 1606.05250): in small letters, without punctuation and articles. The words
are compared by torchmetrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.answers.metric import Metric


@dataclass(frozen=True)
class F1(Metric):
    """Words that an answer shares with a right one, as SQuAD counts them."""

    def score(self, said: str, right: Sequence[str]) -> float:
        """From 0 to 1."""
        from torchmetrics.functional.text.squad import squad

        target = {"answers": {"answer_start": [0] * len(right), "text": list(right)}, "id": "0"}
        found = squad({"prediction_text": said, "id": "0"}, target)  # type: ignore[arg-type]
        return float(found["f1"]) / 100


part = F1
