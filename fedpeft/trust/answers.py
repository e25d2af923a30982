"""Calibration of a language model's answers: does its probability of an answer match the share of right ones?

    choices       p(c) = softmax over the choices of log p(c | question) / T, as classes of a classifier
    free answers  p(answer and its end | question) against exact match

log p is summed over the tokens of a choice. With `by_length`, it is divided by the choice's number of characters, and
multiplied by the mean number over the question's choices, so that T keeps its scale. T is fitted on every second
question, and the other questions are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.models.answers.exam import Exam
from fedpeft.models.answers.questions import Question
from fedpeft.models.calibration import calibrate, fit_temperature
from fedpeft.models.task import FederatedModel
from fedpeft.parts.families import METRICS
from fedpeft.trust.calibration import COVERAGES, compare_answers, compute_risk_coverage, create_questions
from fedpeft.trust.questions.reliability import CELLS, bin_rows

EXACT = "exact_match"
"""The metric by which a free answer is right."""

Advance = Callable[[int], object]
"""A function that is called with the number of finished sequences."""


def find_right(questions: Sequence[Question]) -> NDArray[np.int64]:
    """Return the position of each question's right choice, (questions,)."""
    return np.array([question.choices.index(question.right[0]) for question in questions], np.int64)


def pad_scores(questions: Sequence[Question], scores: Sequence[NDArray[np.float64]], by_length: bool) -> Tensor:
    """Return the choices' log-likelihoods as logits, fp64 (questions, most choices); absent choices have -inf."""
    logits = torch.full((len(questions), max(map(len, scores))), -torch.inf, dtype=torch.float64)
    for row, (question, own) in enumerate(zip(questions, scores, strict=True)):
        lengths = np.array([len(choice) for choice in question.choices])
        scaled = own * lengths.mean() / lengths if by_length else own
        logits[row, : len(own)] = torch.from_numpy(scaled)
    return logits


def calibrate_choices(
    exam: Exam, model: FederatedModel, tokenizer: Any, bins: int, by_length: bool, advance: Advance = lambda _: None
) -> dict[str, Any]:
    """Return the `temperature`, its number of questions, and the calibration `before` and `after`, for summary.json.

    Args:
        exam: questions with choices, at least two.
        model: a language model.
        tokenizer: its tokenizer.
        bins: number of equally wide bins of confidence.
        by_length: whether log-likelihoods are divided by the lengths of the choices.
        advance: receives the progress.
    """
    logits = pad_scores(exam.questions, exam.score_choices(model, tokenizer, advance), by_length)
    labels = find_right(exam.questions)
    temperature = fit_temperature(logits[::2].numpy(), labels[::2])
    asked = create_questions(temperature, bins)
    answers = [question.answer(logits[1::2], torch.from_numpy(labels[1::2])) for question in asked]
    return {"temperature": temperature, "fitted_on": len(labels[::2]), **compare_answers(answers, asked)}


def calibrate_free_answers(
    exam: Exam, model: FederatedModel, tokenizer: Any, bins: int, by_length: bool, advance: Advance = lambda _: None
) -> dict[str, Any]:
    """Return how well the likelihood of a free answer matches its exact match, for summary.json.

    The error has `bins` equally wide bins of confidence. With `by_length`, the confidence is the geometric mean over
    the tokens of the answer and its end.

    Returns:
        Number of `rows`, `accuracy`, mean `confidence`, expected calibration `error` (0 to 1), `brier` (the mean
        squared difference of confidence and match, 0 to 1), and the risk-coverage curve.
    """
    said = [texts[0] for texts in exam.answer(model, tokenizer, advance)]
    match = METRICS.build(EXACT)
    right = np.array([match.score(text, q.right) for text, q in zip(said, exam.questions, strict=True)])
    scores = exam.score_answers(model, tokenizer, said)
    if by_length:
        scores = scores / [1 + len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in said]
    confidence = np.exp(scores)
    coverage, risk = compute_risk_coverage(bin_rows(torch.from_numpy(confidence), torch.from_numpy(right), CELLS))
    kept = torch.linspace(0, len(coverage) - 1, min(COVERAGES, len(coverage))).round().long()
    return {
        "rows": len(right),
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "error": calibrate(confidence, right, bins).error,
        "brier": float(np.square(confidence - right).mean()),
        "coverage": coverage[kept].tolist(),
        "risk": risk[kept].tolist(),
    }
