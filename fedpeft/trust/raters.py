"""Comparison of a model's uncertainty with that of people, on examples that many people rated independently.

A label hides how many people disagree, and calibration against labels does not penalize a model that is sure where
people are not. With two classes:

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
"""Smallest number of examples whose ranks are compared."""

Column = NDArray[np.floating[Any]]
"""One number per example."""


def compute_share_error(probability: Column, share: Column, bins: int) -> float:
    """Compute the share error of the module's docstring, in `bins` equally wide bins.

    Args:
        probability: probability of the second class, (rows,).
        share: share of votes for the second class, (rows,).
        bins: number of bins.
    """
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, share - probability, minlength=bins)
    return float(np.abs(gaps).sum() / len(share))


def compare_with_raters(
    raters: Raters, predicted: NDArray[np.int64], confidence: Column, scaled: Column, bins: int
) -> dict[str, Any] | None:
    """Compare predictions with raters, for summary.json; None if there are too few examples.

    Args:
        raters: the ratings of the examples.
        predicted: class of each example, 0 or 1, (rows,).
        confidence: probability of the predicted class, (rows,), 0.5 to 1.
        scaled: the same after temperature scaling, (rows,).
        bins: number of bins of probability.
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
