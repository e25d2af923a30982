"""The linear probe on the frozen base: the accuracy of pretrained features without any fine-tuning.

It is a converged logistic regression on standardized, mean-pooled features of the frozen base. Its regularization is
chosen on the validation set, or, if that is small, by cross-validation on the training set. A federation that does not
beat it was not worth its bytes. It sees the whole training set at once.

Neighboring candidates differ by an example or two in a thousand, so chance and the rounding of the machine would choose
the best of them. The one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984) takes the
strongest regularization that is as good as the best within the error of the validation accuracy. On a small validation
set that error is large, and the rule would weaken the probe: on 100 examples it takes a candidate that is 5 points
worse.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import current_process
from typing import Any, Self

import numpy as np
import torch
from rich.markup import escape

from fedpeft.data.rows import Rows
from fedpeft.machine import cache
from fedpeft.machine.background_process import BackgroundProcess
from fedpeft.machine.cores import count_usable_cores
from fedpeft.models import scoring
from fedpeft.models.target_measures import measure_classes
from fedpeft.models.task import Task
from fedpeft.models.tasks.classification import RowTask
from fedpeft.reporting.observer import RunObserver
from fedpeft.reporting.workers import Workers
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.simulation.target_probes import Part, fit_number_probe, label_probe
from fedpeft.wiring.activation_cache import is_pooled
from fedpeft.wiring.setup import Setup

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
"""Candidates for scikit-learn's C, the inverse of the regularization."""

ITERATIONS = 2000
"""Most iterations of a fit; lbfgs converges well before."""

ENOUGH = 1000
"""Size of the validation set from which on C is chosen there: the standard error is then at most 1.6 points."""

WORTH_A_PROCESS = 2 * 10**6
"""Entries of the training features from which on fitting gets its own process, which takes about a second to start."""

WIDE = 2000
"""Number of features from which on a fold's fit begins where the previous one ended, which halves the time.

Features of all blocks of an encoder take minutes otherwise.
"""

FOLDS = 5
"""Number of folds of the cross-validation."""

PROBE_TOKENS = 128
"""Least text length of the probe: on 20 Newsgroups as good as 256, and better than 64."""


@dataclass(frozen=True)
class ProbeResult:
    """Result of the probe on the test set.

    Attributes:
        accuracy: test accuracy, or what stands for it (`RowLosses.correct`).
        strength: the chosen C.
        predicted: predictions for the examples.
        measures: the task's measures of all of them together.
    """

    accuracy: float
    strength: float
    predicted: np.ndarray
    measures: Mapping[str, Any] = field(default_factory=dict)


def run_base_probe(
    setup: Setup, rows: SimulatedRows, workers: Workers, tokens: int | None = None
) -> ProbeResult | None:
    """Fit the linear probe and score it on the test set, on texts of `tokens` tokens; None: no labels.

    By default the texts are as long as the run's own, and at least `PROBE_TOKENS` long.
    """
    with begin_probe(setup, rows, workers, tokens, beside=False) as begun:
        return begun.wait_for_result()


def begin_probe(
    setup: Setup, rows: SimulatedRows, workers: Workers, tokens: int | None = None, beside: bool = True
) -> BegunProbe:
    """Begin `run_base_probe`, which may continue `beside` what comes next; features are computed at once."""
    if not setup.task.targets:
        return BegunProbe()
    tokens = tokens or min(setup.readable, max(setup.tokens, PROBE_TOKENS))
    work = workers.work
    if tokens == setup.tokens:
        train, depth = work.data_key, work.depth
    else:
        train, depth = setup.tokenize_rows(rows.all, tokens), 0
    test = setup.tokenize_rows(rows.dataset.test, tokens)
    shared = tokens == setup.tokens and _can_share_pass(setup, workers)
    base, test_depth = ("fp32", 0 if is_pooled(setup) else setup.frozen_blocks) if shared else ("", 0)
    workers.freeze(train, depth, "frozen features of the training set (kept for later runs)")
    workers.freeze(test, test_depth, "frozen features of the test set (kept for later runs)", base)
    labels, test_labels = (_get_labels(setup.task, part) for part in (rows.all, rows.dataset.test))
    rule = "one standard error, cross-validated" + (", warm" if work.width >= WIDE else "")
    more: dict[str, str] = {**setup.method.base_as_read(), **setup.code}
    if base:
        more["test_dtype"] = base
    if workers.machine.gpus:
        more["device"] = work.device.partition(":")[0]
    name = cache.compute_key(train=train, test=test, model=work.model_key, dtype=work.dtype, probe=rule, **more)

    def parts() -> tuple[Part, Part, Part]:
        features = work.store(train, depth).read_features(np.arange(len(labels))).numpy()
        held_out = work.set_precision(base).store(test, test_depth).read_features(np.arange(len(test_labels))).numpy()
        shared, held = np.arange(len(rows.train)), rows.validation
        return (features[shared], labels[shared]), (features[held], labels[held]), (held_out, test_labels)

    def build_result(found: Mapping[str, np.ndarray]) -> ProbeResult:
        if setup.task.targets != "classes":
            return _create_result(setup, np.asarray(found["outputs"]), rows.dataset.test, float(found["strength"]))
        said, accuracy, strength = np.asarray(found["predicted"]), float(found["accuracy"]), float(found["strength"])
        return ProbeResult(accuracy, strength, said, measure_classes(said, test_labels, setup.facts.label_names or ()))

    fit = _fit_classes if setup.task.targets == "classes" else partial(_fit_targets, _choose_target_probe(setup.task))
    large = len(rows.train) * work.width >= WORTH_A_PROCESS
    free = count_usable_cores() > 1 and not current_process().daemon  # a daemon may not start processes
    return BegunProbe(name, fit, parts, build_result, workers.observer, beside and large and free)


Fit = Callable[[Part, Part, Part], Mapping[str, np.ndarray]]
"""Returns the arrays that describe a probe, given features and labels of training, validation and test set."""


def _fit_classes(train: Part, validation: Part, test: Part) -> dict[str, np.ndarray]:
    made = fit_linear_probe(train, validation, test)
    return {"accuracy": np.array(made.accuracy), "strength": np.array(made.strength), "predicted": made.predicted}


def _fit_targets(
    probe: Callable[[Part, Part, Part], tuple[float, np.ndarray]], train: Part, validation: Part, test: Part
) -> dict[str, np.ndarray]:
    strength, outputs = probe(train, validation, test)
    return {"strength": np.array(strength), "outputs": outputs}


def _fit_on_one_thread(fit: Fit, *parts: Part) -> Mapping[str, np.ndarray]:
    """Fit on one thread: products are small, and the number of cores would change the last bit."""
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    with threadpool_limits(1):
        return fit(*parts)


class BegunProbe:
    """A probe that is fitted at once, or beside the rounds; leave it to end it.

    Args:
        name: name of its arrays in the cache.
        fit: computes these arrays.
        parts: returns features and labels of training, validation and test set.
        build_result: returns the result that the arrays describe; None: nothing is probed.
        observer: receives messages about the fit.
        beside: whether it begins now, in its own process.
    """

    def __init__(
        self,
        name: str = "",
        fit: Fit = _fit_classes,
        parts: Callable[[], tuple[Part, Part, Part]] | None = None,
        build_result: Callable[[Mapping[str, np.ndarray]], ProbeResult] | None = None,
        observer: RunObserver | None = None,
        beside: bool = False,
    ) -> None:
        """Begin the fit, or read it from the cache."""
        self._name, self._fit, self._parts, self._build_result, self._observer = (
            name,
            fit,
            parts,
            build_result,
            observer,
        )
        self._beside: BackgroundProcess[Mapping[str, np.ndarray]] | None = None
        if beside and parts is not None and observer is not None and not cache.is_cached("probe", name):
            observer.say("[bold]probe[/]   the linear probe is fitted beside the first rounds")
            self._beside = BackgroundProcess(self._report_result, _fit_on_one_thread, fit, *parts())
        self._found = self._read() if self._beside is None else None

    def __enter__(self) -> Self:
        """Return the probe."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process that fits."""
        if self._beside is not None:
            self._beside.close()

    @property
    def has_failed(self) -> bool:
        """Whether fitting has failed already."""
        return self._beside is not None and self._beside.error is not None

    def wait_for_result(self) -> ProbeResult | None:
        """Return the result, after waiting for it if necessary; None: nothing is probed.

        Raises:
            Exception: the error of the fit.
        """
        return self._found or self._read()

    def _read(self) -> ProbeResult | None:
        """Return the result from the cache, or from the fit."""
        return (
            self._build_result(cache.load_arrays("probe", self._name, self._get_fit))
            if self._build_result is not None
            else None
        )

    def _get_fit(self) -> Mapping[str, np.ndarray]:
        assert self._parts is not None
        assert self._observer is not None
        if self._beside is None or self._beside.is_running or self._beside.is_lost:
            self._observer.phase("linear probe", 1)
        made = None if self._beside is None else self._beside.wait_for_result()
        return made or _fit_on_one_thread(self._fit, *self._parts())

    def _report_result(self, beside: BackgroundProcess[Mapping[str, np.ndarray]]) -> None:
        assert self._observer is not None
        if beside.error is not None:
            what = escape(f"{type(beside.error).__name__}: {beside.error}")
            self._observer.say(f"[bold red]probe[/]   can't be fitted, so the run ends after this round ({what})")
        elif beside.is_lost:
            self._observer.say("[bold]probe[/]   another program ended its process; it is fitted again at the end")
        else:
            self._observer.say(f"[bold]probe[/]   fitted in {beside.seconds:.0f} s beside the rounds")


def _get_labels(task: Task, rows: Rows) -> np.ndarray:
    """Return the labels of `rows` as the task's loss reads them."""
    assert isinstance(task, RowTask)
    return task.labels(rows)


def _choose_target_probe(task: Task) -> Callable[[Part, Part, Part], tuple[float, np.ndarray]]:
    """Return the probe for numbers, or for several labels per example."""
    return (
        fit_number_probe if task.targets == "numbers" else partial(label_probe, STRENGTHS, choose_strength, ITERATIONS)
    )


def _create_result(setup: Setup, outputs: np.ndarray, test: Rows, strength: float) -> ProbeResult:
    """Return the result of a probe for numbers or several labels, given its outputs on the test set."""
    labels, said = torch.from_numpy(_get_labels(setup.task, test)), torch.from_numpy(np.array(outputs))
    losses = setup.task.losses(said, {"labels": labels})
    accuracy = float(losses.correct.double().sum() / losses.counts.double().sum())
    measures = scoring.compute_measures(setup.task, outputs, test.labels, setup.facts.label_names)
    return ProbeResult(accuracy, strength, setup.task.values(said).numpy(), measures)


def _can_share_pass(setup: Setup, workers: Workers) -> bool:
    """Return whether the final score uses fp32 frozen features of the test set, so one pass serves it and the probe."""
    on_cpu = not workers.machine.gpus and workers.machine.cluster is None
    kept = setup.frozen_blocks > 0 or is_pooled(setup)
    return on_cpu and kept and not setup.method.base_precision and setup.config.dtype != "fp64"


def fit_linear_probe(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> ProbeResult:
    """Fit on `train`, choose C, score on `test`: pairs of features (n, d) and labels (n,).

    C is chosen on `validation` if that has `ENOUGH` examples or more than `train`, or if `train` has too few of each
    class to be divided. Otherwise it is chosen by cross-validation on `train`.
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
    if rows >= min(ENOUGH, len(train[1])) or not _is_divisible(train[1]):
        accuracies = _try_strengths(models, lambda model: float(model.fit(*train).score(*validation)), rows)
    else:
        rows, folds = len(train[1]), StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            if train[0].shape[1] >= WIDE:
                accuracies = _try_strengths(models, _warm(train, list(folds.split(*train))), rows)
            else:
                accuracies = _try_strengths(
                    models, lambda model: float(cross_val_score(model, *train, cv=folds).mean()), rows
                )
    strength = choose_strength(accuracies, rows)
    predicted = models[strength].fit(*train).predict(test[0])
    return ProbeResult(float((predicted == test[1]).mean()), strength, predicted)


def _warm(train: Part, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> Callable[[Any], float]:
    """Return a function for the mean accuracy of a pipeline over folds, with warm starts.

    A fold's fit begins where that of the previous pipeline has ended.
    """
    from sklearn.base import clone

    features, labels = train
    fitted: dict[int, Any] = {}

    def accuracy(model: Any) -> float:
        found = []
        for fold, (fit, held) in enumerate(folds):
            own = fitted.setdefault(fold, clone(model).set_params(logisticregression__warm_start=True))
            own.set_params(logisticregression__C=model.named_steps["logisticregression"].C)
            found.append(own.fit(features[fit], labels[fit]).score(features[held], labels[held]))
        return float(np.mean(found))

    return accuracy


def _try_strengths(models: Mapping[float, Any], accuracy: Callable[[Any], float], rows: int) -> dict[float, float]:
    """Return each candidate's accuracy on `rows` examples, until one is a standard error below the best.

    Behind the peak none would be chosen, and a fit takes longer the weaker the regularization.
    """
    found: dict[float, float] = {}
    for strength in sorted(models):
        found[strength] = accuracy(models[strength])
        if found[strength] < _compute_tolerated_accuracy(found, rows):
            break
    return found


def _compute_tolerated_accuracy(accuracies: Mapping[float, float], rows: int) -> float:
    """Return the best accuracy, less one standard error."""
    best = max(accuracies.values())
    return best - math.sqrt(best * (1 - best) / rows)


def _is_divisible(labels: np.ndarray) -> bool:
    """Return whether every fold, and what is left without it, has examples of two classes."""
    return int(np.count_nonzero(np.unique(labels, return_counts=True)[1] >= FOLDS)) > 1


def choose_strength(accuracies: Mapping[float, float], rows: int) -> float:
    """Return the smallest C whose accuracy on `rows` unseen examples lies within one standard error of the best."""
    least = _compute_tolerated_accuracy(accuracies, rows)
    return min(C for C, accuracy in accuracies.items() if accuracy >= least)
