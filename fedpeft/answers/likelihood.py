"""Multiple choice by likelihood: which of the choices a language model holds for the likeliest answer.

    log p(choice | question), summed over the choice's tokens                      ("accuracy")
    the same, divided by the number of the choice's characters                     ("accuracy by length")

The two are `acc` and `acc_norm` of the lm-evaluation-harness (Gao et al.): a sum favours short choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fedpeft.answers.questions import Question
from fedpeft.data.examples import AnsweredRows, Examples, batch_by_length
from fedpeft.data.text_to_text import tokenize_target
from fedpeft.data.tokens import build_token_rows, get_padding_id
from fedpeft.models import scoring
from fedpeft.models.task import FederatedModel, Task

BATCH = 16
"""Sequences of a pass."""


def tokenize_choices(tokenizer: Any, questions: Sequence[Question], delimiter: str) -> list[tuple[list[int], int]]:
    """For each choice of each question the token ids of both, and how many of them are the question's."""
    found = []
    for question in questions:
        prompt = question.tokenize_prompt(tokenizer)
        for choice in question.choices:
            ids = tokenizer(delimiter + choice, add_special_tokens=False)["input_ids"]
            found.append((prompt + list(ids), len(prompt)))
    return found


def log_likelihoods(
    model: FederatedModel,
    task: Task,
    tokenizer: Any,
    questions: Sequence[Question],
    delimiter: str,
    advance: Callable[[int], object] = lambda _: None,
) -> list[np.ndarray]:
    """log p of each choice, (choices,) for each question.

    Args:
        task: of language models.
        delimiter: what stands between question and choice.
        advance: is told how many more sequences are done.
    """
    examples = (
        _build_pairs(tokenizer, questions)
        if questions[0].paired
        else _build_continuations(tokenizer, questions, delimiter)
    )
    found = np.zeros(len(examples))
    with torch.inference_mode():
        for index in batch_by_length(examples.lengths, BATCH):
            batch = scoring.move_batch(examples.batch(index), model)
            found[index] = -task.row_losses(model, batch).sums.double().cpu().numpy()
            advance(len(index))
    ends = np.cumsum([len(question.choices) for question in questions])
    return np.split(found, ends[:-1])


def _build_continuations(tokenizer: Any, questions: Sequence[Question], delimiter: str) -> Examples:
    """Choices behind their questions, the loss on the choices."""
    rows = tokenize_choices(tokenizer, questions, delimiter)
    targets = [[False] * asked + [True] * (len(ids) - asked) for ids, asked in rows]
    return build_token_rows([ids for ids, _ in rows], get_padding_id(tokenizer), None, targets)


def _build_pairs(tokenizer: Any, questions: Sequence[Question]) -> Examples:
    """Choices that a decoder writes of questions that an encoder reads; the token of end counts, too."""
    both = [(question.tokenize_prompt(tokenizer), choice) for question in questions for choice in question.choices]
    read = build_token_rows([ids for ids, _ in both], get_padding_id(tokenizer), None)
    said = build_token_rows([tokenize_target(tokenizer, choice) for _, choice in both], get_padding_id(tokenizer), None)
    return AnsweredRows(read, said)


def choose_answers(question: Question, likelihoods: np.ndarray) -> tuple[int, int]:
    """Positions of the likeliest choice, and of the likeliest by length."""
    lengths = np.array([len(choice) for choice in question.choices])
    return int(likelihoods.argmax()), int((likelihoods / lengths).argmax())
