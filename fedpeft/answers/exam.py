"""An exam: questions, the answers of a language model to them, and what these are worth.

Free answers are measured by metrics; where there are choices, by the share of questions whose right choice is the
likeliest, as it is and by length (`fedpeft.answers.likelihood`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.answers.generation import answer_prompts
from fedpeft.answers.likelihood import choose_answers, log_likelihoods
from fedpeft.answers.metric import parse_metrics
from fedpeft.answers.questions import Question
from fedpeft.data.text_to_text import tokenize_target
from fedpeft.errors import DataError
from fedpeft.models.task import TASKS, FederatedModel

Said = tuple[str, ...]
"""An answer; of choices, the likeliest one and the likeliest one by length."""


@dataclass(frozen=True)
class Exam:
    """What a model is asked.

    Attributes:
        questions: at least one; all with choices, or none.
        metrics: of free answers, as texts joined by ",".
        new_tokens: the most that a free answer has.
        delimiter: what stands between a question and a choice.
    """

    questions: tuple[Question, ...]
    metrics: str
    new_tokens: int
    delimiter: str = ""

    @property
    def has_choices(self) -> bool:
        """Whether answers are chosen."""
        return bool(self.questions[0].choices)

    @property
    def sequences(self) -> int:
        """How many sequences a model reads for it."""
        return sum(len(q.choices) for q in self.questions) if self.has_choices else len(self.questions)

    def answer(
        self, model: FederatedModel, tokenizer: Any, advance: Callable[[int], object] = lambda _: None
    ) -> list[Said]:
        """What a model says to each question; `advance` is told how many more sequences are done."""
        if not self.has_choices:
            prompts = [question.tokenize_prompt(tokenizer) for question in self.questions]
            return [(text,) for text in answer_prompts(model, tokenizer, prompts, self.new_tokens, advance=advance)]
        task = TASKS.build("seq2seq" if self.questions[0].paired else "causal_lm")
        found = log_likelihoods(model, task, tokenizer, self.questions, self.delimiter, advance)
        pairs = zip(self.questions, found, strict=True)
        return [tuple(q.choices[pick] for pick in choose_answers(q, likelihoods)) for q, likelihoods in pairs]

    def compute_measures(self, said: Sequence[Said]) -> dict[str, float]:
        """What the answers are worth, 0 to 1, by the name of the measure."""
        rows = list(zip(said, self.questions, strict=True))
        if self.has_choices:
            right = [[text == question.right[0] for text in texts] for texts, question in rows]
            return {
                name: statistics.fmean(one[k] for one in right)
                for k, name in enumerate(("accuracy", "accuracy by length"))
            }
        return {
            name: statistics.fmean(metric.score(texts[0], question.right) for texts, question in rows)
            for name, metric in parse_metrics(self.metrics).items()
        }


def select_fitting(
    questions: Sequence[Question], tokenizer: Any, new_tokens: int, readable: int
) -> tuple[list[Question], list[str]]:
    """The questions that a model which reads `readable` tokens can be asked, and what is to be said of the others.

    Raises:
        DataError: there are none.
    """

    def room(question: Question) -> int:
        if not question.choices:
            return new_tokens
        if question.paired:
            return max(len(tokenize_target(tokenizer, choice)) for choice in question.choices)
        return max(len(tokenizer(choice, add_special_tokens=False)["input_ids"]) for choice in question.choices)

    def longest(question: Question) -> int:
        asked, said = len(question.tokenize_prompt(tokenizer)), room(question)
        return max(asked, said) if question.paired else asked + said  # a decoder reads by itself

    kept = [q for q in questions if longest(q) <= readable]
    if not kept:
        raise DataError(
            f"FP3002 no question fits: with its answer each is longer than the {readable} tokens that are read"
        )
    if len(kept) == len(questions):
        return kept, []
    return kept, [
        f"{len(questions) - len(kept)} of {len(questions)} questions are left out: with {new_tokens} new tokens they "
        f"are longer than the {readable} that the model reads"
    ]
