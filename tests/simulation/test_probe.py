"""The linear probe: which regularisation it takes, and that it finds what is there to find."""

import numpy as np

from fedpeft.simulation.probe import linear_probe, strongest


def test_the_strongest_regularisation_within_one_standard_error_is_taken():
    accuracies = {0.001: 0.839, 0.003: 0.854, 0.01: 0.861, 0.03: 0.863, 0.1: 0.848}
    assert strongest(accuracies, 1000) == 0.003  # 0.863 - sqrt(0.863 * 0.137 / 1000) = 0.852
    assert strongest(accuracies, 100_000) == 0.03
    assert strongest({1.0: 1.0, 0.1: 0.99}, 50) == 1.0  # no error at all


def test_classes_apart_are_told_apart():
    random = np.random.default_rng(0)
    labels = random.integers(3, size=400)
    features = random.normal(size=(400, 8)) + 4 * np.eye(3, 8)[labels]
    parts = [(features[rows], labels[rows]) for rows in (slice(0, 200), slice(200, 300), slice(300, 400))]
    found = linear_probe(*parts)
    assert found.accuracy == np.mean(found.predicted == parts[2][1])
    assert found.accuracy > 0.9
