"""Calibration from sums: what clients add up is what one would find who had all their rows."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from fedpeft.models.calibration import fit_temperature
from fedpeft.trust.calibration import (
    COARSE,
    CalibrationResult,
    compare_answers,
    compute_gap,
    compute_risk_coverage,
    create_questions,
    find_federated_temperature,
    rebin_by_mass,
)
from fedpeft.trust.question import ROWS, parse_question
from fedpeft.trust.questions.likelihoods import Likelihoods
from fedpeft.trust.questions.reliability import CELLS, Reliability, bin_rows
from tests.refusals import refuses

CLASSES = 7


def rows(count, seed, scale=3.0):
    """Logits and labels of an overconfident model."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, CLASSES)) * scale
    chances = np.exp(logits / (scale * 0.9))
    chances /= chances.sum(1, keepdims=True)
    labels = np.array([random.choice(CLASSES, p=p) for p in chances])
    return torch.from_numpy(logits), torch.from_numpy(labels)


def of_clients(question, logits, labels, clients=5):
    """Return the sum of the answers of clients that hold these examples; one client has none."""
    ends = [0, 0, *sorted(np.random.default_rng(9).choice(len(labels), clients - 1, replace=False)), len(labels)]
    answers = [question.answer(logits[a:b], labels[a:b]) for a, b in itertools.pairwise(ends)]
    return {name: sum(answer[name] for answer in answers) for name in answers[0]}


@pytest.mark.parametrize("question", [COARSE, Reliability(temperature=1.7, bins=10)])
def test_sums_of_clients_are_those_of_all_rows(question):
    logits, labels = rows(300, 0)
    pooled, summed = question.answer(logits, labels), of_clients(question, logits, labels)
    assert pooled.keys() == summed.keys() == question.get_all_shapes(CLASSES).keys()
    for name, shape in question.get_all_shapes(CLASSES).items():
        assert tuple(pooled[name].shape) == shape
        torch.testing.assert_close(summed[name], pooled[name], rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_federated_temperature_is_that_of_pooled_rows(seed):
    logits, labels = rows(400, seed, scale=(0.3, 1.5, 3.0, 20.0)[seed])
    found = find_federated_temperature(lambda question: of_clients(question, logits, labels))
    assert found == pytest.approx(fit_temperature(logits.numpy(), labels.numpy()), rel=1e-3)


def test_a_temperature_at_the_end_of_the_grid_stays_there():
    logits = torch.eye(3, dtype=torch.float64) * 5
    assert find_federated_temperature(lambda q: q.answer(logits, torch.arange(3))) == pytest.approx(COARSE.low)


@pytest.mark.parametrize("bins", [10, 15])
def test_errors_are_those_of_libraries(bins):
    logits, labels = rows(500, 1)
    question = Reliability(bins=bins)
    found = CalibrationResult.from_sums(of_clients(question, logits, labels), question)
    chances = logits.softmax(-1)
    error = multiclass_calibration_error(chances, labels, num_classes=CLASSES, n_bins=bins, norm="l1")
    assert found.error == pytest.approx(float(error), abs=1e-6)
    each = [float(binary_calibration_error(chances[:, c], (labels == c).long(), bins, "l1")) for c in range(CLASSES)]
    assert found.classwise == pytest.approx(np.mean(each), abs=1e-6)
    brier = brier_score_loss(labels.numpy(), chances.numpy(), labels=np.arange(CLASSES), scale_by_half=False)
    assert found.brier == pytest.approx(brier, abs=1e-12)
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-12)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert found.rows == 500


def test_a_temperature_makes_an_overconfident_model_better():
    logits, labels = rows(2000, 2)
    temperature = find_federated_temperature(lambda q: q.answer(logits, labels))
    asked = create_questions(temperature, 15)
    told = compare_answers([question.answer(logits, labels) for question in asked], asked)
    assert temperature > 1.5
    assert told["after"]["error"] < told["before"]["error"] / 2
    assert told["after"]["loss"] < told["before"]["loss"]
    assert told["after"]["accuracy"] == told["before"]["accuracy"]


def test_bins_of_equal_mass_from_cells_are_those_of_sorted_rows():
    random = np.random.default_rng(3)
    confidence = np.sort(random.beta(4, 2, size=30_000))
    right = (random.random(30_000) < confidence**2).astype(float)
    direct = sum(abs(part[:, 0].sum() - part[:, 1].sum()) for part in np.array_split(np.c_[confidence, right], 15))
    cells = bin_rows(torch.from_numpy(confidence), torch.from_numpy(right), CELLS)
    bins = rebin_by_mass(cells, 15)
    assert bins[:, 0].sum() == 30_000
    assert float(bins[:, 0].max()) < 1.15 * 2000
    assert compute_gap(bins) == pytest.approx(direct / 30_000, abs=2e-3)


def test_the_risk_coverage_curve_is_that_of_sorted_rows():
    random = np.random.default_rng(4)
    confidence = (random.permutation(CELLS)[:400] + 0.5) / CELLS  # each in a cell of its own
    right = (random.random(400) < confidence).astype(float)
    coverage, risk = compute_risk_coverage(bin_rows(torch.from_numpy(confidence), torch.from_numpy(right), CELLS))
    down = right[np.argsort(-confidence)]
    np.testing.assert_allclose(risk.numpy(), 1 - np.cumsum(down) / np.arange(1, 401), atol=1e-12)
    np.testing.assert_allclose(coverage.numpy(), np.arange(1, 401) / 400)


def test_a_client_answers_what_it_knows_and_nothing_else():
    assert parse_question(Likelihoods(0.5, 2.0, 9).text) == Likelihoods(0.5, 2.0, 9)
    for text, said in (
        ("rows", ("FP6168", "class_sums, kronecker, layer_inputs, likelihoods, reliability")),
        ("likelihoods(points=2)", ("FP6169", "FP1227", "at least 3")),
        ("likelihoods(points=10**9)", ("FP6169",)),
        ("reliability(temperature=0)", ("FP6169", "FP1227", "at least")),
        ("x" * 301, ("FP6167", "301")),
    ):
        with refuses(*said):
            parse_question(text)


@pytest.mark.parametrize(
    ("name", "value"), [("brier", 21.0), ("top", -1.0), ("cells", 10.5), (ROWS, 11.0), ("loss", 1e8)]
)
def test_sums_that_no_rows_have_are_refused(name, value):
    question = Reliability()
    answer = question.answer(*rows(10, 5))
    question.check(answer, 10)
    answer[name].view(-1)[0] = value
    with refuses("FP6165", "11", "10") if name == ROWS else refuses("FP6166", name, "10"):
        question.check(answer, 10)


def test_an_answer_that_would_be_too_long_is_refused():

    with refuses("FP1441"):
        dataclasses.replace(Reliability(), bins=1000).get_all_shapes(1000)


def test_a_temperature_stays_between_its_limits():
    logits, labels = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(0.05, rel=1e-3)  # always right: the sharpest
    assert fit_temperature(logits, 1 - labels) == pytest.approx(20, rel=1e-3)  # always wrong: the flattest
