"""Calibration on clients' own held-out rows, known to the server by sums alone."""

from __future__ import annotations

from typing import Any

from fedpeft.server.questions import Answered, Questions
from fedpeft.trust.calibration import before_and_after, compared, federated_temperature
from fedpeft.trust.question import Question, State


def of_clients(questions: Questions, bins: int) -> dict[str, Any]:
    """`temperature`, how many `clients` have answered, and the model `before` and `after` it, on the same rows.

    Raises:
        ConfigError, RunError: see `Questions.ask`.
    """
    heard: list[Answered] = []

    def ask(question: Question) -> State:
        heard.append(questions.ask(question))
        return heard[-1].total

    temperature = federated_temperature(ask)
    asked = before_and_after(temperature, bins)
    found = compared([ask(question) for question in asked], asked)
    return {"temperature": temperature, "clients": min(one.clients for one in heard), **found}
