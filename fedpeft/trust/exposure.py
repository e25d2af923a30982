"""Exposure of planted secrets: how much a language model prefers a secret of its training data to secrets like it.

    exposure = log2(m + 1) - log2(rank)          rank of the secret's likelihood among itself and m references, from 1

Carlini et al., The Secret Sharer, USENIX Security 2019, arXiv 1802.08232 (abstract only), rank a secret among all of
the space. Here m references are drawn from the space, so exposure ends at log2(m + 1). Secret and references come from
one distribution. So without training on the secret, every rank is equally likely, and the mean exposure is about
1 / ln 2 = 1.44 bits.

Differential privacy bounds the mean: with (epsilon, delta) for all copies of a secret together,

    P[rank <= k] <= min(1, e^epsilon k / (m + 1) + delta)
    E[exposure] = sum_k P[rank <= k] log2((k + 1) / k)                                   k = 1 to m

and c copies have (c epsilon, delta (e^(c epsilon) - 1) / (e^epsilon - 1)) by group privacy (Dwork and Roth, 2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.secrets import PlantedSecret, Secrets
from fedpeft.errors import RunError
from fedpeft.models.answers.exam import Exam
from fedpeft.models.answers.questions import Question, QuestionForm
from fedpeft.models.task import FederatedModel

MOST_EXPONENT = 700.0
"""Largest exponent whose power of e is a float."""


def compute_exposures(likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the exposure of each secret in bits, (secrets,).

    Args:
        likelihoods: log p of the secret, and after it of its references, (secrets, 1 + references). A reference as
            likely as the secret counts as likelier.

    Raises:
        RunError: a likelihood is not finite.
    """
    if not np.isfinite(likelihoods).all():
        raise RunError(
            "FP5782 the likelihood of a planted string is not a finite number, so the model has diverged; lower "
            "--learning-rate, or leave exposure out of --measure"
        )
    ranks = 1 + (likelihoods[:, 1:] >= likelihoods[:, :1]).sum(1)
    exposures: NDArray[np.float64] = np.log2(likelihoods.shape[1] / ranks)
    return exposures


def compute_group_terms(epsilon: float, delta: float, copies: int) -> tuple[float, float]:
    """Return epsilon and delta for `copies` examples or clients together; delta is at most 1."""
    together = copies * epsilon
    if together > MOST_EXPONENT:
        return together, 1.0
    factor = math.expm1(together) / math.expm1(epsilon) if epsilon > 0 else float(copies)
    return together, min(1.0, factor * delta)


def bound_mean_exposure(references: int, epsilon: float, delta: float) -> float:
    """Return the largest mean exposure in bits that (epsilon, delta) allows; see the module."""
    k = np.arange(1, references + 1)
    logs = np.minimum(epsilon + np.log(k / (references + 1)), 0.0)
    return float((np.minimum(1.0, np.exp(logs) + delta) * np.log2((k + 1) / k)).sum())


def create_questions(secret: PlantedSecret, others: Sequence[str], form: QuestionForm) -> Question:
    """Return the prompt of a secret as a question whose choices are the secret and, after it, its references."""
    row = form.pack_row(secret.prompt, secret.text, "a planted secret")
    return Question(row, secret.prompt, (secret.text,), (secret.text, *others))


def measure_exposure(
    planted: Secrets, form: QuestionForm, references: int, model: FederatedModel, tokenizer: Any
) -> NDArray[np.float64]:
    """Return the exposure of each planted secret in a model, (secrets,), in bits.

    Args:
        planted: the secrets.
        form: the form of prompts that the model was tuned with.
        references: number of other secrets that each is compared with.
        model: a language model.
        tokenizer: its tokenizer.
    """
    others = planted.draw_references(references)
    questions = tuple(create_questions(secret, others, form) for secret in planted.list_secrets())
    exam = Exam(questions, "", 1, "" if form.asks else " ")
    scores = [replace(exam, questions=(question,)).score_choices(model, tokenizer)[0] for question in questions]
    return compute_exposures(np.stack(scores))
