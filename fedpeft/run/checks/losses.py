"""What losses that compare need: rows with each other, answers with the base as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.aggregation.strategy import GatherStrategy
from fedpeft.errors import ConfigError, PrivacyError

if TYPE_CHECKING:
    from fedpeft.run.setup import Setup


def check_pairs(setup: Setup) -> None:
    """Refuse steps in which a row is not compared with others, or is compared with fewer than it seems."""
    config = setup.config
    if config.batch_size < 2:
        raise ConfigError("a pair is told from the others of its batch: give --batch-size 2 or more, 16 for a start")
    if setup.training.optimizer.rows_per_pass:
        raise ConfigError(
            "rows_per_pass would compare the rows of each pass alone; leave it out of the optimizer, or give a smaller "
            "--batch-size"
        )
    if setup.mechanism is not None and setup.mechanism.audit:
        raise PrivacyError("audits score rows one by one, and pairs are judged among all; leave audit out of --privacy")


def check_reference(setup: Setup) -> None:
    """A loss that compares with the base needs the base as it was; and gradients per example are of one sequence."""
    name, private = setup.facts.task.partition("(")[0], setup.mechanism is not None and setup.mechanism.per_example
    if private and not setup.task.per_example:
        raise PrivacyError(
            f"{name} {setup.task.per_example_missing}, of which dp_sgd can't tell a row's gradient; take user_dp or "
            "local_dp, which protect a client's whole update"
        )
    strategy = setup.strategy
    if setup.task.reference and isinstance(strategy, GatherStrategy) and strategy.fills_base:
        raise ConfigError(
            f"{name} compares with the base without adapter, and {setup.config.strategy} changes that base; take "
            "flexlora"
        )
