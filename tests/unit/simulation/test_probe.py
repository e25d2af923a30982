"""The linear probe: which regularisation it takes, and that it finds what is there to find."""

import numpy as np
import pytest
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation import probe
from fedpeft.simulation.probe import FOLDS, BegunProbe, _fit_classes, _try_strengths, choose_strength, fit_linear_probe
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig


def test_the_strongest_regularisation_within_one_standard_error_is_taken():
    accuracies = {0.001: 0.839, 0.003: 0.854, 0.01: 0.861, 0.03: 0.863, 0.1: 0.848}
    assert choose_strength(accuracies, 1000) == 0.003  # 0.863 - sqrt(0.863 * 0.137 / 1000) = 0.852
    assert choose_strength(accuracies, 100_000) == 0.03
    assert choose_strength({1.0: 1.0, 0.1: 0.99}, 50) == 1.0  # no error at all


def test_classes_apart_are_told_apart():
    random = np.random.default_rng(0)
    labels = random.integers(3, size=400)
    features = random.normal(size=(400, 8)) + 4 * np.eye(3, 8)[labels]
    parts = [(features[rows], labels[rows]) for rows in (slice(0, 200), slice(200, 300), slice(300, 400))]
    found = fit_linear_probe(*parts)
    assert found.accuracy == np.mean(found.predicted == parts[2][1])
    assert found.accuracy > 0.9


def noisy_classes(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten classes in 64 dimensions that overlap."""
    random = np.random.default_rng(seed)
    labels = random.integers(10, size=rows)
    return random.normal(size=(rows, 64)) + 1.2 * np.eye(10, 64)[labels], labels


def test_few_validation_rows_do_not_weaken_the_probe(monkeypatch):
    """The error of 40 validation rows admits a regularisation that is points worse; the training rows know better."""
    train, validation, test = (noisy_classes(rows, seed) for seed, rows in enumerate((1500, 40, 3000)))
    found = fit_linear_probe(train, validation, test)
    monkeypatch.setattr(probe, "ENOUGH", 40)
    assert fit_linear_probe(train, validation, test).accuracy < found.accuracy - 0.01
    by_many = fit_linear_probe(train, noisy_classes(2000, 7), test)
    assert found.accuracy > by_many.accuracy - 0.01


def test_fits_of_many_features_begin_where_the_last_has_ended_and_end_as_others_do(monkeypatch):
    parts = [noisy_classes(rows, seed) for seed, rows in enumerate((600, 40, 2000))]
    cold = fit_linear_probe(*parts)
    begun = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda model, *rest: begun.append(hasattr(model, "coef_")) or fit(model, *rest)
    )
    monkeypatch.setattr(probe, "WIDE", 64)
    warm = fit_linear_probe(*parts)
    assert sum(begun) == len(begun) - FOLDS - 1, "but for the first of each fold, and that of all rows"
    assert warm.strength == cold.strength
    assert warm.accuracy == pytest.approx(cold.accuracy, abs=1e-3)


def test_the_probe_is_the_same_each_time():
    parts = [noisy_classes(rows, seed) for seed, rows in enumerate((300, 20, 50))]
    assert fit_linear_probe(*parts).strength == fit_linear_probe(*parts).strength


@pytest.mark.medium
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_one_frozen_pass_over_the_test_rows_serves_probe_and_score(tmp_path, monkeypatch, dtype):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    settings = {"tokens": 128, "clients": 4, "peft": "lora(rank=2, layers=1)", "workers": 1, "head": "zero"}
    simulation = Simulation(
        RunConfig(dataset="tiny", dtype=dtype, **settings), tmp_path, ConsoleObserver(Console(quiet=True))
    )
    setup, rows, workers = simulation.setup, simulation.rows, simulation.workers
    found = probe.run_base_probe(setup, rows, workers)
    assert found is not None
    assert found.accuracy > 0.3  # of four classes, by an encoder that has learned nothing
    scored = workers.work.set_precision("fp32").store(
        setup.tokenize_rows(rows.dataset.test, setup.tokens), setup.frozen_blocks
    )
    assert setup.frozen_blocks > 0
    assert scored.find_missing_tiles() == []
    names = [folder.name for folder in (tmp_path / "cache").glob("frozen-*") if folder.is_dir()]
    assert len(names) == 2  # the training rows, and the test rows once


def test_no_strength_is_tried_behind_the_peak():
    asked = []

    def accuracy(model):
        asked.append(model)
        return {"a": 0.80, "b": 0.85, "c": 0.845, "d": 0.80, "e": 0.99}[model]

    found = _try_strengths({1.0: "c", 0.1: "a", 3.0: "d", 0.3: "b", 10.0: "e"}, accuracy, 1000)
    assert asked == ["a", "b", "c", "d"]  # one standard error is 0.011
    assert found == {0.1: 0.80, 0.3: 0.85, 1.0: 0.845, 3.0: 0.80}
    assert choose_strength(found, 1000) == 0.3


def begun(observer, label=None, rows=40):
    """Begin a probe of a few examples in the background; with a single `label` it can't be fitted."""
    parts = [noisy_classes(n, seed) for seed, n in enumerate((rows, 20, 50))]
    if label is not None:
        parts[0] = (parts[0][0], np.full(rows, label))
    judged = lambda found: (float(found["accuracy"]), np.asarray(found["predicted"]).tolist())  # noqa: E731
    return BegunProbe("of-tests", _fit_classes, lambda: tuple(parts), judged, observer, beside=True), parts
