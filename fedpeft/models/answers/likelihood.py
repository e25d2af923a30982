"""Multiple choice by likelihood: the choice that a language model considers the likeliest answer.

    log p(choice | question), summed over the choice's tokens                      ("accuracy")
    the same, divided by the number of the choice's characters                     ("accuracy by length")

They are `acc` and `acc_norm` of the lm-evaluation-harness (Gao et al.). A sum favors short choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedpeft.data.examples import AnsweredRows, Examples, batch_by_length
from fedpeft.data.text_to_text import tokenize_target
from fedpeft.data.tokens import build_token_rows, get_padding_id
from fedpeft.models import scoring
from fedpeft.models.answers.questions import Question
from fedpeft.models.task import FederatedModel, Task

BATCH = 16
"""Number of sequences per forward pass."""


def tokenize_choices(tokenizer: Any, questions: Sequence[Question], delimiter: str) -> list[tuple[list[int], int]]:
    """Return the token ids of question and choice together, and the question's number of tokens, for each choice."""
    found = []
    for question in questions:
        prompt = question.tokenize_prompt(tokenizer)
        for choice in question.choices:
            ids = tokenizer(delimiter + choice, add_special_tokens=False)["input_ids"]
            found.append((prompt + list(ids), len(prompt)))
    return found


def compute_log_likelihoods(
    model: FederatedModel,
    task: Task,
    tokenizer: Any,
    questions: Sequence[Question],
    delimiter: str,
    advance: Callable[[int], object] = lambda _: None,
) -> list[np.ndarray]:
    """Return log p of each choice, float64 (choices,), for each question.

    Args:
        model: a language model.
        task: its task.
        tokenizer: its tokenizer.
        questions: multiple-choice questions.
        delimiter: text between question and choice.
        advance: called with the number of sequences after each batch.
    """
    examples = (
        _build_pairs(tokenizer, questions)
        if questions[0].is_paired
        else build_continuations(tokenizer, questions, delimiter)
    )
    found = _compute_row_likelihoods(model, task, examples, advance)
    ends = np.cumsum([len(question.choices) for question in questions])
    return np.split(found, ends[:-1])


def compute_answer_likelihoods(
    model: FederatedModel,
    task: Task,
    tokenizer: Any,
    questions: Sequence[Question],
    said: Sequence[str],
    delimiter: str,
) -> np.ndarray:
    """Return log p of one answer to each question, and of the end token after it; float64 (questions,).

    The arguments are those of `compute_log_likelihoods`; `said` are the answers, as texts.
    """
    if questions[0].is_paired:
        alone = [replace(q, choices=(text,)) for q, text in zip(questions, said, strict=True)]
        return _compute_row_likelihoods(model, task, _build_pairs(tokenizer, alone))
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    rows, targets = [], []
    for question, text in zip(questions, said, strict=True):
        prompt = question.tokenize_prompt(tokenizer)
        answer = [*tokenizer(delimiter + text, add_special_tokens=False)["input_ids"], *end]
        rows.append(prompt + answer)
        targets.append([False] * len(prompt) + [True] * len(answer))
    return _compute_row_likelihoods(model, task, build_token_rows(rows, get_padding_id(tokenizer), None, targets))


def _compute_row_likelihoods(
    model: FederatedModel, task: Task, examples: Examples, advance: Callable[[int], object] = lambda _: None
) -> np.ndarray:
    """Return log p of the counted tokens of each row, float64 (rows,)."""
    found = np.zeros(len(examples))
    with torch.inference_mode():
        for index in batch_by_length(examples.lengths, BATCH):
            batch = scoring.move_batch(examples.batch(index), model)
            found[index] = -task.row_losses(model, batch).sums.double().cpu().numpy()
            advance(len(index))
    return found


def build_continuations(tokenizer: Any, questions: Sequence[Question], delimiter: str) -> Examples:
    """Return choices as continuations of their questions; the loss counts the choices' tokens."""
    rows = tokenize_choices(tokenizer, questions, delimiter)
    targets = [[False] * asked + [True] * (len(ids) - asked) for ids, asked in rows]
    return build_token_rows([ids for ids, _ in rows], get_padding_id(tokenizer), None, targets)


def _build_pairs(tokenizer: Any, questions: Sequence[Question]) -> Examples:
    """Return choices as targets of a decoder, with the question as source; the end token counts, too."""
    both = [(question.tokenize_prompt(tokenizer), choice) for question in questions for choice in question.choices]
    read = build_token_rows([ids for ids, _ in both], get_padding_id(tokenizer), None)
    said = build_token_rows([tokenize_target(tokenizer, choice) for _, choice in both], get_padding_id(tokenizer), None)
    return AnsweredRows(read, said)


def choose_answers(question: Question, likelihoods: np.ndarray) -> tuple[int, int]:
    """Return the positions of the likeliest choice, and of the likeliest by length."""
    lengths = np.array([len(choice) for choice in question.choices])
    return int(likelihoods.argmax()), int((likelihoods / lengths).argmax())
