"""A measurement of my own: the accuracy of the saved adapter on long test texts and on short ones.

fedpeft simulate --plugin examples/by_length.py --measure "by_length(words=20)"
"""

from dataclasses import dataclass

import numpy as np

from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement


@dataclass(frozen=True)
class ByLength(Measurement):
    """Accuracy on test texts by their number of words."""

    words: int = setting(20, "words of a long text, at least", low=1)

    def compute(self, run, answers):
        """Return the section of the report, or None if the server has no test examples."""
        if run.test is None or run.score is None:
            return None
        is_long = np.array([len(str(text).split()) >= self.words for text in run.test.inputs])
        is_right = run.score.scores.correct > 0
        return {
            "long_texts": int(is_long.sum()),
            "accuracy_long": float(is_right[is_long].mean()) if is_long.any() else None,
            "accuracy_short": float(is_right[~is_long].mean()) if not is_long.all() else None,
        }


part = ByLength
