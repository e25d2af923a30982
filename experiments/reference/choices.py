"""What strategies, PEFT methods and mechanisms declare of what they go with."""

from __future__ import annotations

import inspect
from functools import cache

import torch

from experiments.reference.tables import rows
from fedpeft.aggregation.strategy import Strategy, strategies
from fedpeft.errors import FedpeftError
from fedpeft.models.base_model import resolve_model
from fedpeft.models.task import TASKS
from fedpeft.peft.adapter import Layout
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.peft.method import PeftMethod
from fedpeft.privacy.mechanism import MECHANISMS
from fedpeft.run.checks.rules import check_method


def combinations() -> str:
    """The three tables."""
    parts: dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]] = {
        "Strategies": (
            ("strategy", "what it is", "PEFT methods", "ranks may differ", "`user_dp`", "`secure_sum`", "personal"),
            [_strategy(name, strategies.part(name)) for name in strategies.names],
        ),
        "PEFT methods": (
            ("method", "what it is", "strategies", "sizes may differ", "all clients in one pass", "`dp_sgd`", "merges",
             "in peft's format", "joined by +"),
            [_method(name, PEFT_METHODS.part(name)) for name in PEFT_METHODS.names],
        ),
        "Mechanisms": (
            ("mechanism", "what it is", "hides", "noise is that of"),
            [
                (f"`{name}`", _first(MECHANISMS.part(name)), _hidden(name), _whose(name))
                for name in MECHANISMS.names
            ],
        ),
    }  # fmt: skip
    return "\n".join(f"## {title}\n\n{rows(heads, lines)}" for title, (heads, lines) in parts.items())


def _strategy(name: str, part: type[Strategy]) -> tuple[str, ...]:
    own = part.private is not Strategy.private or part.personal_pull is not Strategy.personal_pull or part.groups
    summed = part.sum_of_clients() and not own and not part.asks_clients
    linear = part.plain_sum() and not part.asks_clients
    return (f"`{name}`", _first(part), _named(takes(name)), *map(_word, (part.mixed_ranks, linear, summed, own)))


GIVEN = {"flower": "flower(rule=FedMedian)"}
"""Strategies that need a setting, and one that they can have."""


def takes(name: str) -> list[str]:
    """The methods that a strategy is right for, by what a run would check of their layouts on a tiny classifier."""
    strategy = strategies.build(GIVEN.get(name, name))
    found = []
    for peft, (method, layout) in layouts().items():
        try:
            check_method(method, strategy, name, [method.form])
            if not method.factoring(layout):
                strategy.check(layout, [method.form])
        except FedpeftError:
            continue
        found.append(peft)
    return found


@cache
def layouts() -> dict[str, tuple[PeftMethod, Layout]]:
    """Each method with its layout; those that need finished runs, or an extra, are not here."""
    task, folder = TASKS.build("classification"), resolve_model("tiny")
    found = {}
    for peft in PEFT_METHODS.names:
        try:
            method = PEFT_METHODS.build(peft)
            model = task.model(task.base(folder, torch.float32), 4)
            method.attach(model, "fp32")
        except FedpeftError:
            continue
        found[peft] = method, method.layout(model)
    return found


def _named(taken: list[str]) -> str:
    """Few are named; of many those that are not."""
    missing = [peft for peft in layouts() if peft not in taken]
    if not missing:
        return "all"
    return ", ".join(taken) if len(taken) <= len(missing) else "all but " + ", ".join(missing)


def _method(name: str, part: type[PeftMethod]) -> tuple[str, ...]:
    said = (part.mixed_sizes, part.batched, part.privacy != "refused", part.merges, part.in_peft, part.composes)
    return (f"`{name}`", _first(part), ", ".join(part.strategies) or "see above", *map(_word, said))


def _whose(name: str) -> str:
    part = MECHANISMS.part(name)
    return "the sum" if part.summed else "each row's gradient" if part.per_example else "updates"


def _hidden(name: str) -> str:
    said = MECHANISMS.part(name).hides
    return said if isinstance(said, str) else "by its settings"


def _first(part: type) -> str:
    return (inspect.getdoc(part) or "").split("\n")[0].rstrip(".")


def _word(true: bool) -> str:
    return "yes" if true else ""
