"""How a model serves each client: who can be scored, and how many a tenth is."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from fedpeft.data.rows import Rows
from fedpeft.measurements.robustness import Robustness
from fedpeft.models.client_accuracy import compute_client_accuracies, compute_worst_tenth
from fedpeft.rounds.evaluation import summarize_own_rows
from fedpeft.simulation.robustness import measure_corruptions
from fedpeft.study.results import compute_client_accuracy

RIGHT, LABELS = np.array([True, True, False, False]), np.array([0, 0, 1, 1])


def test_the_worst_clients_are_those_with_the_classes_that_suffer():
    held = np.array([[9, 1]] * 18 + [[0, 10]] * 2)
    assert compute_worst_tenth(compute_client_accuracies(RIGHT, LABELS, held)) == 0
    assert compute_worst_tenth(compute_client_accuracies(RIGHT, LABELS, held[:18])) == pytest.approx(0.9)


def test_a_client_whose_classes_were_not_scored_is_left_out():
    """Its accuracy is not 0: nothing is known of it."""
    held = np.array([[8, 2, 0], [10, 0, 5], [0, 0, 7]])
    assert compute_client_accuracies(RIGHT, LABELS, held).tolist() == [0.8, 1.0]
    assert not len(compute_client_accuracies(RIGHT, LABELS, held[2:]))
    assert math.isnan(compute_worst_tenth([]))
    said = measure_corruptions(
        Robustness(rows=4, draws=1),
        Rows(["a"] * 4, LABELS),
        "text",
        lambda rows: np.zeros(4, np.int64),
        str,
        held,
        0,
    )
    assert said["clean"]["worst_clients"] == 0.8


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (9, 1), (15, 1), (19, 1), (20, 2), (29, 2)])
def test_all_who_speak_of_a_worst_tenth_mean_as_many(clients, worst):
    held = np.array([[k, clients - k] for k in range(1, clients + 1)])
    expected = np.mean([k / clients for k in range(1, worst + 1)])
    assert compute_worst_tenth(compute_client_accuracies(RIGHT, LABELS, held)) == pytest.approx(expected)
    study = compute_client_accuracy(
        {"correct": RIGHT.astype(float)}, {"labels": held.astype(float), "test_labels": LABELS}
    )
    assert study is not None
    assert study["worst_tenth"] == pytest.approx(expected)
    reports = [SimpleNamespace(count=clients, correct=k, loss=0.0) for k in range(1, clients + 1)]
    assert summarize_own_rows(reports).worst_accuracy == pytest.approx(expected)
