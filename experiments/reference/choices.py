"""What strategies, PEFT methods and mechanisms declare of what they go with."""

from __future__ import annotations

import inspect

from experiments.reference.tables import rows
from fedpeft.aggregation.strategy import LinearStrategy, Strategy, strategies
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.peft.method import PeftMethod
from fedpeft.privacy.mechanism import MECHANISMS


def choosing() -> str:
    """The three tables."""
    parts = {
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
    return "\n".join(f"### {title}\n\n{rows(heads, lines)}" for title, (heads, lines) in parts.items())


def _strategy(name: str, part: type[Strategy]) -> tuple[str, ...]:
    named = [method for method in PEFT_METHODS.names if name in PEFT_METHODS.part(method).strategies]
    takes = ", ".join(named) if named and part.needs_lora else "LoRA" if part.needs_lora else "any"
    own = part.private is not Strategy.private or part.personal_pull is not Strategy.personal_pull
    summed = part.sum_of_clients() and not own
    linear = issubclass(part, LinearStrategy)
    return (f"`{name}`", _first(part), takes, *map(_word, (part.mixed_ranks, linear, summed, own)))


def _method(name: str, part: type[PeftMethod]) -> tuple[str, ...]:
    said = (part.mixed_sizes, part.batched, part.privacy != "refused", part.merges, part.in_peft, part.composes)
    return (f"`{name}`", _first(part), ", ".join(part.strategies) or "as these say", *map(_word, said))


def _whose(name: str) -> str:
    part = MECHANISMS.part(name)
    return "the sum" if part.summed else "each row's gradient" if part.per_example else "updates"


def _hidden(name: str) -> str:
    said = MECHANISMS.part(name).hides
    return said if isinstance(said, str) else "as its settings say"


def _first(part: type) -> str:
    return (inspect.getdoc(part) or "").split("\n")[0].rstrip(".")


def _word(true: bool) -> str:
    return "yes" if true else ""
