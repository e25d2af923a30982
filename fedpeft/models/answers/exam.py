"""Exams: questions, a language model's answers to them, and the measures of these answers.

Metrics measure free answers. Multiple choice is measured by accuracy: the share of questions whose right choice is the
likeliest one, with and without normalization by length (`fedpeft.models.answers.likelihood`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedpeft.data.text_to_text import tokenize_target
from fedpeft.errors import DataError
from fedpeft.models.answers.generation import answer_prompts
from fedpeft.models.answers.likelihood import choose_answers, compute_answer_likelihoods, compute_log_likelihoods
from fedpeft.models.answers.metric import Metric, RunsTests, ScoresTogether, parse_metrics
from fedpeft.models.answers.questions import Question
from fedpeft.models.task import FederatedModel, Task
from fedpeft.parts.families import TASKS

Said = tuple[str, ...]
"""An answer; for multiple choice, the likeliest choice and the likeliest one by length."""


@dataclass(frozen=True)
class Exam:
    """Questions to a model.

    Attributes:
        questions: at least one; all with choices, or none.
        metrics: metrics of free answers, joined by ",".
        new_tokens: most tokens of a free answer.
        delimiter: text between a question and a choice.
        run_code: whether metrics may run code of answers, in isolation.
    """

    questions: tuple[Question, ...]
    metrics: str
    new_tokens: int
    delimiter: str = ""
    run_code: bool = False

    @property
    def has_choices(self) -> bool:
        """Whether the questions are multiple choice."""
        return bool(self.questions[0].choices)

    @property
    def sequences(self) -> int:
        """Number of sequences that a model reads."""
        return sum(len(q.choices) for q in self.questions) if self.has_choices else len(self.questions)

    def answer(
        self, model: FederatedModel, tokenizer: Any, advance: Callable[[int], object] = lambda _: None
    ) -> list[Said]:
        """Return the model's answer to each question.

        `advance` is called with the number of sequences after each batch.
        """
        if not self.has_choices:
            prompts = [question.tokenize_prompt(tokenizer) for question in self.questions]
            return [(text,) for text in answer_prompts(model, tokenizer, prompts, self.new_tokens, advance=advance)]
        pairs = zip(self.questions, self.score_choices(model, tokenizer, advance), strict=True)
        return [tuple(q.choices[pick] for pick in choose_answers(q, likelihoods)) for q, likelihoods in pairs]

    def score_choices(
        self, model: FederatedModel, tokenizer: Any, advance: Callable[[int], object] = lambda _: None
    ) -> list[np.ndarray]:
        """Return log p of each choice, float64 (choices,), for each question; see `answer`."""
        return compute_log_likelihoods(model, self._task, tokenizer, self.questions, self.delimiter, advance)

    def score_answers(self, model: FederatedModel, tokenizer: Any, said: Sequence[str]) -> np.ndarray:
        """Return log p of one free answer to each question, and its end, in nats; float64 (questions,)."""
        return compute_answer_likelihoods(model, self._task, tokenizer, self.questions, said, self.delimiter)

    @property
    def _task(self) -> Task:
        """The task whose losses are the likelihoods."""
        return TASKS.build("seq2seq" if self.questions[0].is_paired else "causal_lm")

    def compute_measures(self, said: Sequence[Said]) -> dict[str, float]:
        """Return the value of each measure of the answers, 0 to 1, by its name."""
        rows = list(zip(said, self.questions, strict=True))
        if self.has_choices:
            right = [[text == question.right[0] for text in texts] for texts, question in rows]
            return {
                name: statistics.fmean(one[k] for one in right)
                for k, name in enumerate(("accuracy", "accuracy by length"))
            }
        return {
            name: self._score_all(metric, [texts[0] for texts in said])
            for name, metric in parse_metrics(self.metrics).items()
        }

    def _score_all(self, metric: Metric, said: Sequence[str]) -> float:
        if self.run_code and isinstance(metric, RunsTests):
            return statistics.fmean(map(partial(self._run_tests, metric), said, self.questions))
        right = [question.right for question in self.questions]
        if isinstance(metric, ScoresTogether):
            return metric.score_all(said, right)
        return statistics.fmean(map(metric.score, said, right))

    @staticmethod
    def _run_tests(metric: RunsTests, said: str, question: Question) -> float:
        return metric.score_tests(question.asked, said, question.right, question.tests)

    def check_tests(self) -> None:
        """Check, for metrics that need tests, that each right answer passes its tests.

        Raises:
            DataError: a question has choices or no tests, or its right answer fails them.
            RunError: code could not be isolated.
        """
        if self.run_code and self.has_choices:
            raise DataError("FP3364 the questions have choices, so there is no code to run; leave --run-code out")
        for name, metric in parse_metrics(self.metrics).items():
            if not self.run_code or not isinstance(metric, RunsTests) or not metric.needs_tests:
                continue
            for place, question in enumerate(self.questions):
                if not question.tests:
                    raise DataError(
                        f"FP3362 {name} needs tests, but the question {question.asked!r:.60} has none; add the column "
                        "'tests', or leave this metric out"
                    )
                if not self._run_tests(metric, question.right[0], question):
                    raise DataError(
                        f"FP3363 question {place}, {question.asked!r:.60}: the right answer fails its own tests; "
                        "tests call functions of the answer by name, with plain values such as numbers, texts and lists"
                    )


def select_fitting(
    questions: Sequence[Question], tokenizer: Any, new_tokens: int, readable: int
) -> tuple[list[Question], list[str]]:
    """Return the questions that fit a model which reads `readable` tokens, and a warning about the others.

    Raises:
        DataError: no question fits.
    """

    def count_answer_tokens(question: Question) -> int:
        if not question.choices:
            return new_tokens
        if question.is_paired:
            return max(len(tokenize_target(tokenizer, choice)) for choice in question.choices)
        return max(len(tokenizer(choice, add_special_tokens=False)["input_ids"]) for choice in question.choices)

    def count_tokens(question: Question) -> int:
        asked, said = len(question.tokenize_prompt(tokenizer)), count_answer_tokens(question)
        return max(asked, said) if question.is_paired else asked + said  # encoder and decoder have separate limits

    kept = [q for q in questions if count_tokens(q) <= readable]
    if not kept:
        raise DataError(
            f"FP3002 no question fits: each is longer, with its answer, than the {readable} tokens that the model "
            "reads; give shorter questions or fewer new tokens"
        )
    if len(kept) == len(questions):
        return kept, []
    return kept, [
        f"{len(questions) - len(kept)} of {len(questions)} questions are left out: with {new_tokens} new tokens they "
        f"are longer than the {readable} that the model reads"
    ]
