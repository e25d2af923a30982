"""Evaluate: every few rounds the global model is asked questions, and its answers are kept.

    --measure "evaluate"                                      the validation rows, where they are questions
    --measure "evaluate(every=2, questions='exam.jsonl')"     questions of your own, free or with choices

Answers go to RUN/evaluations.jsonl, a line for each evaluated round. It is the server that asks: no client is needed.
`python -m fedpeft.evaluate RUN` asks the finished model, on test rows, beside its base.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.parts import setting
from fedpeft.run.measurement import Measurement


@dataclass(frozen=True)
class Evaluate(Measurement):
    """Questions to the global model of a language model, every few rounds."""

    every: int = setting(4, "rounds between evaluations; the last round always has one", low=1)
    questions: str = setting("", "JSONL with question and answer, perhaps choices; empty: the validation examples")
    metrics: str = setting("exact_match, f1", "of free answers, in quotes: 'exact_match, f1, rouge_l'")
    new_tokens: int = setting(40, "most tokens of an answer", low=1)
    rows: int = setting(0, "at most so many questions; 0: all", low=0)


part = Evaluate
