"""What a model says of itself against what many people have said of each row."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy, spearmanr

from fedpeft.data.rows import Dataset, Raters, Rows
from fedpeft.measurements.calibration import Calibration
from fedpeft.models.scoring import Scores
from fedpeft.reporting.final_score import FinalScore
from fedpeft.trust.calibration import create_questions
from fedpeft.trust.raters import FEWEST, compare_with_raters, compute_share_error
from fedpeft.wiring.measurements import trust_lines
from tests.refusals import refuses


def made(rows=4000, seed=0):
    """Probabilities of the second class, and what twenty people say who decide by them."""
    random = np.random.default_rng(seed)
    p = random.beta(0.7, 0.7, rows)
    votes = random.random((rows, 20)) < p[:, None]
    return p, Raters(votes.mean(1), votes.std(1))


def said(p, temperature=1.0):
    logits = np.log(p / (1 - p)) / temperature
    p = 1 / (1 + np.exp(-logits))
    return (p > 0.5).astype(np.int64), np.maximum(p, 1 - p)


def test_a_model_that_says_what_people_do_has_hardly_any_error_and_one_that_is_too_sure_has():
    p, raters = made()
    predicted, honest = said(p)
    _, sure = said(p, 0.2)
    found = compare_with_raters(raters, predicted, sure, honest, 15)
    assert found["rows"] == len(p)
    assert found["share_error"]["after"] < 0.015
    assert found["share_error"]["before"] > 0.1
    assert found["entropy"] > 0.8


def test_ranks_are_those_of_entropy_whatever_the_temperature():
    p, raters = made(300, 1)
    predicted, honest = said(p)
    expected = spearmanr([entropy([c, 1 - c]) for c in honest], raters.spread).statistic
    for confidence in (honest, said(p, 3.0)[1]):
        assert compare_with_raters(raters, predicted, confidence, honest, 15)["entropy"] == pytest.approx(
            expected, abs=1e-9
        )


def test_the_error_by_hand():
    p, share = np.array([0.1, 0.1, 0.9, 1.0]), np.array([0.5, 0.3, 0.8, 1.0])
    assert compute_share_error(p, share, 2) == pytest.approx((abs(0.4 + 0.2) + abs(-0.1 + 0.0)) / 4)


def test_few_rows_or_one_answer_to_all_have_no_ranks():
    p, raters = made(FEWEST, 2)
    predicted, confidence = said(p)
    assert compare_with_raters(raters, predicted, np.full(FEWEST, 0.5), confidence, 15)["entropy"] is None
    few = Raters(raters.share[1:], raters.spread[1:])
    assert compare_with_raters(few, predicted[1:], confidence[1:], confidence[1:], 15) is None


def test_a_report_says_it():
    found = {"rows": 20, "entropy": 0.31, "share_error": {"before": 0.2, "after": 0.15}}
    lines = trust_lines({"trust": {"calibration": {"raters": found}}})
    assert lines["error against the share of raters' votes"] == "0.2000; 0.1500 calibrated"
    assert lines["rank correlation of entropy and raters' spread"] == "0.310"
    assert len(trust_lines({"trust": {"calibration": {"raters": found | {"entropy": None}}}})) == 1


def test_a_run_on_rated_rows_tells_it_with_its_calibration():
    p, raters = made(200, 3)
    predicted, confidence = said(p, 0.5)
    scaled = said(p)[1]
    labels = torch.from_numpy((raters.share > 0.5).astype(np.int64))
    logits = torch.from_numpy(np.stack([-np.log(p / (1 - p)), np.log(p / (1 - p))], 1))
    questions = create_questions(2.0, 15)
    zeros = np.zeros(200)
    score = FinalScore(
        0.9, 0.3, Scores(zeros, zeros, zeros, predicted, confidence, scaled), 2.0,
        tuple(question.answer(logits, labels) for question in questions),
    )  # fmt: skip

    def compute(raters):
        rows = SimpleNamespace(dataset=SimpleNamespace(raters=raters))
        run = SimpleNamespace(score=score, simulation=SimpleNamespace(rows=rows), begun=None)
        return Calibration().compute(run, {})

    assert compute(raters)["raters"] == compare_with_raters(raters, predicted, confidence, scaled, 15)
    assert "raters" not in compute(None)


def test_raters_are_of_the_test_rows():
    rows = Rows(["a", "b"], np.array([0, 1]))
    with refuses("FP3135"):
        Dataset("x", "text", "classification", rows, rows, ("a", "b"), "tiny", raters=Raters(np.ones(3), np.ones(3)))
