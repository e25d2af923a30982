"""Which strategies, PEFT methods and mechanisms go together: each pair is set up on tiny data, as a run would be."""

from __future__ import annotations

import inspect
from functools import cache

from experiments.reference.tables import rows
from fedpeft.aggregation.strategy import strategies
from fedpeft.config import from_mapping
from fedpeft.errors import FedpeftError
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.run.setup import DataFacts, Setup

FACTS = DataFacts("text", "classification", tuple("abcd"), "tiny", 100)

MECHANISMS = (
    *("dp_sgd(epsilon=8)", "local_dp(epsilon=8)", "user_dp(epsilon=8)"),
    *("secure_sum", "distributed_dp(epsilon=8)"),
)

ALIKE = "fedit"
"""The plain mean, beside which methods are tried."""

USUAL = "lora"

GIVEN = {"flower": "flower(rule=FedMedian)"}
"""Strategies that need a setting, and one that they can have."""

NEEDS = {"distributed_dp(epsilon=8)": {"cohort": "all"}, "user_dp(epsilon=8)": {"head": "zero"}}
"""What a mechanism asks for besides, of the settings that are not in the table."""


@cache
def goes(strategy: str, peft: str, privacy: str = "", ranks: str = "") -> bool:
    """Whether a run of these is set up."""
    settings = {"dataset": "tiny", "dtype": "fp32", "strategy": GIVEN.get(strategy, strategy), "peft": peft}
    settings |= {"head": "zero", "safeguard": "none", "measure": "validation(keep=last)"}
    settings |= {"privacy": privacy, "ranks": ranks} | NEEDS.get(privacy, {})
    try:
        Setup.of(from_mapping(settings, "a pair"), FACTS)
    except FedpeftError:
        return False
    return True


def method_of(strategy: str) -> str:
    """The method that a strategy is tried with: the usual one, or the first that it takes."""
    return next((m for m in [USUAL, *PEFT_METHODS.names] if goes(strategy, m)), "")


def choosing() -> str:
    """The two tables."""
    by_strategy = []
    for name in strategies.names:
        taken = [method for method in PEFT_METHODS.names if goes(name, method)]
        own = method_of(name)
        mixed = _word(goes(name, own, ranks="4*50,8*50"))
        private = [_word(goes(name, own, privacy)) for privacy in MECHANISMS]
        by_strategy.append([f"`{name}`", _first(strategies.part(name)), _named(taken), mixed, *private])
    by_method = []
    for name in PEFT_METHODS.names:
        part = PEFT_METHODS.part(name)
        beside = next((s for s in [ALIKE, *strategies.names] if goes(s, name)), "")
        private = [_word(goes(beside, name, privacy)) for privacy in MECHANISMS]
        by_method.append([f"`{name}`", _first(part), f"`{beside}`", _word(part.mixed_sizes), _word(part.merges),
                          _word(part.in_peft), *private])  # fmt: skip
    mechanisms = [text.partition("(")[0] for text in MECHANISMS]
    strategy_heads = ("strategy", "what it is", "PEFT methods", "ranks may differ", *mechanisms)
    method_heads = ("method", "what it is", "with", "sizes may differ", "merges", "peft's format", *mechanisms)
    return "\n".join(
        ["### Strategies\n", rows(strategy_heads, by_strategy), "### PEFT methods\n", rows(method_heads, by_method)]
    )


def _first(part: type) -> str:
    return (inspect.getdoc(part) or "").split("\n")[0].rstrip(".")


def _word(true: bool) -> str:
    return "yes" if true else ""


def _named(taken: list[str]) -> str:
    """Few are named; of many those that are not."""
    missing = [name for name in PEFT_METHODS.names if name not in taken]
    if not missing:
        return "all"
    if len(taken) <= len(missing):
        return ", ".join(taken)
    return "all but " + ", ".join(missing)
