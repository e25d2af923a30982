"""The frozen-base linear probe: what the pretrained features give without any fine-tuning.

Logistic regression on standardised, mean-pooled features of the frozen base, converged, its regularisation chosen on
the validation rows, or where these are few by cross-validation on the training rows. A federation that does not beat it
was not worth its bytes. It sees all training rows at once.

Candidates next to each other differ by a row or two in a thousand, so the best of them would be chosen by chance, and
by the rounding of the machine. The one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984)
takes the strongest regularisation that is as good as the best within the error of the validation accuracy. With few
validation rows that error is large, and the rule would weaken the probe: on 100 rows it takes what is 5 points worse.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from fedpeft.data.rows import Rows
from fedpeft.machine import cache
from fedpeft.models import scoring
from fedpeft.models.task import Task
from fedpeft.models.tasks.classification import RowTask
from fedpeft.run.reuse import pools
from fedpeft.run.setup import Setup
from fedpeft.run.workers import Workers
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.simulation.target_probes import Part, label_probe, number_probe

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
"""Candidates for scikit-learn's C, the inverse of the regularisation."""

ITERATIONS = 2000
"""At most; lbfgs converges well before."""

ENOUGH = 1000
"""Validation rows from which on C is chosen on them: the standard error is at most 1.6 points there."""

FOLDS = 5
"""Of the cross-validation."""

PROBE_TOKENS = 128
"""Text length of the probe where the run's own is shorter: on 20 Newsgroups as good as 256, and better than 64."""


@dataclass(frozen=True)
class ProbeResult:
    """Test accuracy of the probe (or what stands for it, see `RowLosses.correct`), and its C; of numbers or several
    labels a row also what the task tells of all rows together."""

    accuracy: float
    strength: float
    predicted: np.ndarray
    measures: Mapping[str, Any] = field(default_factory=dict)


def base_probe(setup: Setup, rows: SimulatedRows, workers: Workers, tokens: int | None = None) -> ProbeResult | None:
    """The frozen-base linear probe on the test rows, on texts of `tokens` tokens; None where rows are not predicted.

    By default the texts are as long as the run's own, and at least as long as suits the probe best.
    """
    if not setup.task.targets:
        return None
    tokens = tokens or min(setup.readable, max(setup.tokens, PROBE_TOKENS))
    work = workers.work
    if tokens == setup.tokens:
        train, depth = work.data_key, work.depth
    else:
        train, depth = setup.tokenised(rows.all, tokens), 0
    test = setup.tokenised(rows.dataset.test, tokens)
    shared = tokens == setup.tokens and _scored_alike(setup, workers)
    base, test_depth = ("fp32", 0 if pools(setup) else setup.frozen_blocks) if shared else ("", 0)
    workers.freeze(train, depth, "frozen features of the training rows (kept for later runs)")
    workers.freeze(test, test_depth, "frozen features of the test rows (kept for later runs)", base)
    labels, test_labels = (_labels(setup.task, part) for part in (rows.all, rows.dataset.test))
    rule = "one standard error, cross-validated"
    precision = setup.method.base_precision
    more: dict[str, str] = {"precision": precision} if precision else {}
    if base:
        more["test_dtype"] = base
    if workers.machine.gpus:
        more["device"] = work.device.partition(":")[0]
    name = cache.key(train=train, test=test, model=work.model_key, dtype=work.dtype, probe=rule, **more)

    def fit() -> dict[str, np.ndarray]:
        features = work.store(train, depth).features(np.arange(len(labels))).numpy()
        held_out = work.at(base).store(test, test_depth).features(np.arange(len(test_labels))).numpy()
        shared, held = np.arange(len(rows.train)), rows.validation
        workers.observer.phase("linear probe", 1)
        parts = (features[shared], labels[shared]), (features[held], labels[held]), (held_out, test_labels)
        if setup.task.targets != "classes":
            strength, outputs = _target_probe(setup.task)(*parts)
            return {"strength": np.array(strength), "outputs": outputs}
        made = linear_probe(*parts)
        return {
            "accuracy": np.array(made.accuracy),
            "strength": np.array(made.strength),
            "predicted": made.predicted,
        }

    found = cache.arrays("probe", name, fit)
    if setup.task.targets != "classes":
        return _judged(setup, np.asarray(found["outputs"]), rows.dataset.test, float(found["strength"]))
    return ProbeResult(float(found["accuracy"]), float(found["strength"]), np.asarray(found["predicted"]))


def _labels(task: Task, rows: Rows) -> np.ndarray:
    """The rows' labels as the task's loss reads them."""
    assert isinstance(task, RowTask)
    return task.labels(rows)


def _target_probe(task: Task) -> Callable[[Part, Part, Part], tuple[float, np.ndarray]]:
    """How numbers, or several labels a row, are probed."""
    return number_probe if task.targets == "numbers" else partial(label_probe, STRENGTHS, strongest, ITERATIONS)


def _judged(setup: Setup, outputs: np.ndarray, test: Rows, strength: float) -> ProbeResult:
    """The result of a probe of numbers or several labels, given its outputs on the test rows."""
    labels, said = torch.from_numpy(_labels(setup.task, test)), torch.from_numpy(np.array(outputs))
    losses = setup.task.losses(said, {"labels": labels})
    accuracy = float(losses.correct.double().sum() / losses.counts.double().sum())
    measures = scoring.measures(setup.task, outputs, test.labels, setup.facts.label_names)
    return ProbeResult(accuracy, strength, setup.task.values(said).numpy(), measures)


def _scored_alike(setup: Setup, workers: Workers) -> bool:
    """Whether the final score reads what fp32 frozen layers make of the test rows: one pass serves it and the probe."""
    on_cpu = not workers.machine.gpus and workers.machine.cluster is None
    return on_cpu and setup.frozen_blocks > 0 and not setup.method.base_precision and setup.config.dtype != "fp64"


def linear_probe(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> ProbeResult:
    """Fit on `train`, choose C, score on `test`: pairs of features (n, d) and labels (n,).

    C is chosen on `validation` where it has `ENOUGH` rows or more than `train`, or where `train` has too few of each
    class to be divided; else by cross-validation on `train`.
    """
    from sklearn.linear_model import LogisticRegression  # 60 MB that a run with a cached probe can do without
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = {
        strength: make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=ITERATIONS))
        for strength in STRENGTHS
    }
    rows = len(validation[1])
    if rows >= min(ENOUGH, len(train[1])) or not _divisible(train[1]):
        accuracies = {C: float(model.fit(*train).score(*validation)) for C, model in models.items()}
    else:
        rows, folds = len(train[1]), StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            accuracies = {C: float(cross_val_score(model, *train, cv=folds).mean()) for C, model in models.items()}
    strength = strongest(accuracies, rows)
    predicted = models[strength].fit(*train).predict(test[0])
    return ProbeResult(float((predicted == test[1]).mean()), strength, predicted)


def _divisible(labels: np.ndarray) -> bool:
    """Whether every fold, and what is left without it, has rows of two classes."""
    return int(np.count_nonzero(np.unique(labels, return_counts=True)[1] >= FOLDS)) > 1


def strongest(accuracies: Mapping[float, float], rows: int) -> float:
    """The smallest C whose accuracy on `rows` rows that were not fitted lies within one standard error of the best."""
    best = max(accuracies.values())
    error = math.sqrt(best * (1 - best) / rows)
    return min(C for C, accuracy in accuracies.items() if accuracy >= best - error)
