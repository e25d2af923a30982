"""Calibration on clients' own held-out examples, of which the server sees only sums."""

from __future__ import annotations

from typing import Any

from fedpeft.peft.adapter import State
from fedpeft.rounds.questions import Questions, SummedAnswers
from fedpeft.trust.calibration import compare_answers, create_questions, find_federated_temperature
from fedpeft.trust.question import Question


def calibrate_on_clients(questions: Questions, bins: int) -> dict[str, Any]:
    """Return the `temperature`, the number of `clients`, and the model `before` and `after`, on the same examples.

    Raises:
        ConfigError, RunError: see `Questions.ask`.
    """
    heard: list[SummedAnswers] = []

    def ask(question: Question) -> State:
        heard.append(questions.ask(question))
        return heard[-1].total

    temperature = find_federated_temperature(ask)
    asked = create_questions(temperature, bins)
    found = compare_answers([ask(question) for question in asked], asked)
    return {"temperature": temperature, "clients": min(one.clients for one in heard), **found}
