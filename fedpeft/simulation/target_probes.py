"""Linear probes of frozen features for numbers, and for several labels per example: baselines without fine-tuning.

Numbers: ridge regression on standardized features, its strength by leave-one-out on the training set (scikit-learn's
RidgeCV). Several labels: a logistic regression for each, with one strength C for all. C is chosen on the validation set
by the one-standard-error rule (`fedpeft.simulation.probe`). A label that no training example has, or all have, is
constant.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

Part = tuple[np.ndarray, np.ndarray]
"""Features (n, d) and labels (n,) or (n, outputs)."""

RIDGE = tuple(10.0**power for power in range(-2, 6))
"""Candidates for the ridge's strength, on features of variance 1."""

SAID = 30.0
"""Logit of a label that is the same in the whole training set."""


def fit_number_probe(train: Part, validation: Part, test: Part) -> tuple[float, np.ndarray]:
    """Return the strength, and the predictions for the test set, (n, 1), in the unit of the labels.

    The validation set is not used.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(alphas=RIDGE))
    model.fit(train[0].astype(np.float64), train[1])
    said = model.predict(test[0].astype(np.float64))
    return float(model[-1].alpha_), said[:, None]


def label_probe(
    strengths: Sequence[float],
    chosen: Callable[[dict[float, float], int], float],
    iterations: int,
    train: Part,
    validation: Part,
    test: Part,
) -> tuple[float, np.ndarray]:
    """Return C, and the test set's logits, (n, labels).

    Args:
        strengths: candidates for C.
        chosen: returns one of them, given the accuracy of each and the number of decisions that it is measured on.
        iterations: most iterations of a fit.
        train: features and labels of the training set.
        validation: those of the validation set; empty: the training set is used.
        test: those of the test set.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train[0])
    features = [scaler.transform(part[0]) for part in (train, validation, test)]

    def logits(strength: float, of: np.ndarray) -> np.ndarray:
        return np.stack([_compute_logits(features[0], own, of, strength, iterations) for own in train[1].T], axis=1)

    judged = (features[1], validation[1]) if len(validation[1]) else (features[0], train[1])
    right = {C: float(((logits(C, judged[0]) >= 0) == (judged[1] > 0)).mean()) for C in strengths}
    strength = chosen(right, judged[1].size)
    return strength, logits(strength, features[2])


def _compute_logits(
    train: np.ndarray, labels: np.ndarray, of: np.ndarray, strength: float, iterations: int
) -> np.ndarray:
    """Return one label's logits for the examples `of`, (n,)."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        return np.full(len(of), SAID if labels[0] else -SAID)
    model = LogisticRegression(C=strength, max_iter=iterations)
    with warnings.catch_warnings(action="ignore"):
        return np.asarray(model.fit(train, labels).decision_function(of))
