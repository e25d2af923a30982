"""Is a model as unsure as people are? What it says of rows that many people have rated, each for themselves.

A label hides how many people would have said otherwise, and calibration against labels forgives a model that is sure
of rows about which people are not. Of two classes:

    share_error   the mean over rows of |mean share of votes - mean probability| of their bin of the second class's
                  probability: the expected calibration error with votes in the place of labels
    entropy       Spearman's rank correlation of the entropy of a prediction with the spread of the ratings: 1 where the
                  model is unsure of what people disagree about, in their order
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from fedpeft.data.rows import Raters

FEWEST = 10
"""Rows from which on ranks are compared."""

Column = NDArray[np.floating[Any]]
"""A number for each row."""


def compute_share_error(probability: Column, share: Column, bins: int) -> float:
    """See above; `probability` and `share` are of the second class, (rows,), in `bins` equally wide bins."""
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, share - probability, minlength=bins)
    return float(np.abs(gaps).sum() / len(share))


def compare_with_raters(
    raters: Raters, predicted: NDArray[np.int64], confidence: Column, scaled: Column, bins: int
) -> dict[str, Any] | None:
    """For summary.json; None: there are too few rows.

    Args:
        raters: of the rows.
        predicted: class of each row, 0 or 1, (rows,).
        confidence, scaled: its probability, as it is and with the temperature, (rows,), 0.5 to 1.
        bins: of probability.
    """
    if len(raters.share) < FEWEST:
        return None
    before, after = (np.where(predicted == 1, sure, 1 - sure) for sure in (confidence, scaled))
    # Entropy falls as confidence rises, and a temperature keeps the order: ranks are those of -confidence.
    ranked = np.ptp(confidence) > 0 and np.ptp(raters.spread) > 0
    errors = [compute_share_error(probability, raters.share, bins) for probability in (before, after)]
    return {
        "rows": len(raters.share),
        "entropy": float(spearmanr(-confidence, raters.spread).statistic) if ranked else None,
        "share_error": dict(zip(("before", "after"), errors, strict=True)),
    }
