"""What does not go with tasks that come one after the other: what would be wrong, or unprotected, is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.aggregation.abilities import AsksClients
from fedpeft.aggregation.task_rules import TaskRanks, TaskStrategy
from fedpeft.clients.drift import KeepsState
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.parts import name_of
from fedpeft.trust.question import parse_question

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


def check_tasks(setup: Setup) -> None:
    """Refuse what counts on all examples from the start, and questions that nothing protects or nobody can answer.

    Raises:
        ConfigError, PrivacyError: says what, and what to do.
    """
    rule, mechanism = setup.strategy, setup.mechanism
    name = name_of(type(rule))
    if isinstance(rule, AsksClients) and (mechanism is not None or setup.secure_sum is not None):
        raise PrivacyError(
            f"FP7113 {name} asks single clients for sums over their examples, which --privacy does not cover; use fedit"
        )
    if isinstance(rule, AsksClients):
        text = rule.choose_question("train", setup.layout)
        if text and not parse_question(text).of_model:
            raise ConfigError(
                f"FP1991 {name} asks {text!r} in each round, which needs examples that clients hold out, and no "
                "strategy has these; choose a question that the model answers on training examples (of_model = True)"
            )
    if setup.facts.tasks is None:
        return
    _check_rule(setup)
    if setup.personal:
        raise ConfigError(
            f"FP1346 with {name} each client has its own model, and continual learning is scored on the global "
            "model; choose a strategy that shares all tensors, such as fedit"
        )
    if setup.drift.needs_shares:
        raise ConfigError(
            "FP1347 label_shift has the shares of classes of the first task only; leave it out of --drift, since in "
            "continual learning a client's loss compares the classes of its task anyway"
        )
    if mechanism is not None and mechanism.per_example:
        raise PrivacyError(
            f"FP7114 {mechanism.name} needs the same examples of a client in every round, but continual "
            "learning changes them; use user_dp, which protects all examples of a client"
        )


def _check_rule(setup: Setup) -> None:
    """Refuse what would move, or can't tell apart, what a rule that goes by tasks leaves alone."""
    rule, optimizer = setup.strategy, setup.server_optimizer
    name = name_of(type(rule))
    if isinstance(rule, TaskStrategy) and optimizer.keeps_state:
        raise ConfigError(
            f"FP1349 {name} keeps the tensors of other tasks, and the moments of a server optimizer would change "
            "them; use --server-optimizer sgd"
        )
    if not isinstance(rule, TaskRanks):
        return
    for correction in setup.drift.corrections:
        if isinstance(correction, KeepsState):
            raise ConfigError(
                f"FP1350 {correction.name} keeps factors between rounds, and with {name} a client trains other "
                "factors in the next task; leave it out of --drift"
            )
    if setup.factor_view:
        raise ConfigError(
            f"FP1351 {name} gives each task its own ranks, and {setup.method.name} has no ranks; use lora"
        )
