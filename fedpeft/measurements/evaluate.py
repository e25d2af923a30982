"""Evaluate: every few rounds the global model answers questions, and its answers are kept.

    --measure "evaluate"                                      the validation examples, if they are questions
    --measure "evaluate(every=2, questions='exam.jsonl')"     questions of your own, free or with choices

Answers go to RUN/evaluations.jsonl, one line for each evaluated round. The server asks, so no client is needed.
`fedpeft evaluate RUN` asks the finished model and its base about test examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement, NewRun

if TYPE_CHECKING:
    from fedpeft.models.answers.exam import Exam
    from fedpeft.rounds.features import RunParts
    from fedpeft.rounds.hooks import RoundHook
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Evaluate(Measurement):
    """Questions to the global model of a language model, every few rounds."""

    every: int = setting(4, "rounds between evaluations; the last round always has one", low=1)
    questions: str = setting(
        "", "JSONL file with question and answer, and optional choices; empty: the validation examples", path=True
    )
    metrics: str = setting(
        "exact_match, f1", "metrics of free answers, in quotes: 'exact_match, f1, rouge_l, bleu, chrf'"
    )
    new_tokens: int = setting(40, "the most tokens of an answer", low=1)
    rows: int = setting(0, "the most questions; 0: all", low=0)

    def check(self, setup: Setup) -> None:
        """Reject models that answer no questions."""
        from fedpeft.wiring.exam import check_evaluate

        check_evaluate(setup, self)

    def begin(self, run: NewRun) -> Exam:
        """Read the questions."""
        from fedpeft.wiring.exam import ExamRequest, make_exam

        request = ExamRequest(self.name, self.questions, self.metrics, self.new_tokens, self.rows)
        return make_exam(request, run.setup, run.validation(), run.say)

    def attach(self, run: RunParts) -> RoundHook | None:
        """Ask the questions every few rounds."""
        from fedpeft.rounds.examiner import Examiner

        if run.model.answer is None:
            return None
        exam = run.begun[self.name]
        return Examiner(exam, self.every, run.setup.rounds, run.model.answer, run.observer.say)


part = Evaluate
