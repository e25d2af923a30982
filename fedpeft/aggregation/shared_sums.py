"""Rules that form a plain sum of the clients' updates, which a mechanism can bound and a secure sum can hide."""

from __future__ import annotations

from fedpeft.aggregation.abilities import AsksClients, Buffered, PersonalModel
from fedpeft.aggregation.grouped_rules import GroupedStrategy
from fedpeft.aggregation.strategy import LinearStrategy, Strategy
from fedpeft.errors import ConfigError
from fedpeft.parts import list_overrides, name_of
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import Layout


def is_plain_sum(rule: type[Strategy]) -> bool:
    """Return whether a rule only adds up contributions and divides by the sum of the weights."""
    return (
        issubclass(rule, LinearStrategy)
        and rule.fold is LinearStrategy.fold
        and rule.pseudo_gradient is LinearStrategy.pseudo_gradient
    )


def is_plain_mean(strategy: Strategy) -> bool:
    """Return whether a rule is the weighted mean of updates, for any PEFT method, and does nothing else."""
    if not isinstance(strategy, LinearStrategy) or strategy.needs_lora or isinstance(strategy, strategies.abilities):
        return False
    return not (list_overrides(strategy, Strategy) or list_overrides(strategy, LinearStrategy))


def is_sum_of_clients(rule: type[Strategy]) -> bool:
    """Return whether a rule needs nothing of the clients but the sum of their weighted updates."""
    if not (issubclass(rule, LinearStrategy) and is_plain_sum(rule)):
        return False
    adds_deltas = rule.adds_deltas or rule.contribution is LinearStrategy.contribution
    return (
        adds_deltas and rule.list_private is Strategy.list_private and not issubclass(rule, PersonalModel | AsksClients)
    )


def is_shared_sum(strategy: Strategy, layout: Layout) -> bool:
    """Return whether a round is a plain sum of what all clients share of this adapter, which a mechanism can bound."""
    if not is_plain_sum(type(strategy)) or isinstance(strategy, Buffered) or strategy.list_private(layout):
        return False
    try:
        strategy.check(layout, [layout.form])
    except ConfigError:
        return False
    return True


def list_shared_sums(layout: Layout) -> list[str]:
    """Return the names of these rules, without those whose clients are asked questions or have models of their own."""
    rules = [strategies.build(name) for name in strategies.names if is_plain_sum(strategies.part(name))]
    return [
        name_of(type(s)) for s in rules if not isinstance(s, PersonalModel | AsksClients) and is_shared_sum(s, layout)
    ]


def is_personal(strategy: Strategy, layout: Layout) -> bool:
    """Return whether clients' models differ: tensors or models stay with them, or groups have states of their own."""
    return bool(strategy.list_private(layout)) or isinstance(strategy, PersonalModel | GroupedStrategy)
