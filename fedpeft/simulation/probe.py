"""The frozen-base linear probe: what the pretrained features give without any fine-tuning.

Logistic regression on standardised, mean-pooled features of the frozen base, converged, its regularisation chosen on
the validation rows. A federation that does not beat it was not worth its bytes. It sees all training rows at once.

Candidates next to each other differ by a row or two in a thousand, so the best of them would be chosen by chance, and
by the rounding of the machine. The one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984)
takes the strongest regularisation that is as good as the best within the error of the validation accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
"""Candidates for scikit-learn's C, the inverse of the regularisation."""

ITERATIONS = 2000
"""At most; lbfgs converges well before."""

PROBE_TOKENS = 128
"""Text length of the probe where the run's own is shorter: on 20 Newsgroups as good as 256, and better than 64."""


@dataclass(frozen=True)
class ProbeResult:
    """Test accuracy of the probe, and its C."""

    accuracy: float
    strength: float
    predicted: np.ndarray


def linear_probe(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> ProbeResult:
    """Fit on `train`, choose C on `validation`, score on `test`: pairs of features (n, d) and labels (n,)."""
    from sklearn.linear_model import LogisticRegression  # 60 MB that a run with a cached probe can do without
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = {}
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=ITERATIONS))
        fitted[strength] = model.fit(*train)
    strength = strongest({C: float(model.score(*validation)) for C, model in fitted.items()}, len(validation[1]))
    predicted = fitted[strength].predict(test[0])
    return ProbeResult(float((predicted == test[1]).mean()), strength, predicted)


def strongest(accuracies: Mapping[float, float], rows: int) -> float:
    """The smallest C whose accuracy on `rows` validation rows lies within one standard error of the best."""
    best = max(accuracies.values())
    error = math.sqrt(best * (1 - best) / rows)
    return min(C for C, accuracy in accuracies.items() if accuracy >= best - error)
