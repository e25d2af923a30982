"""What losses need: those that compare rows with each other or answers with the base, and those of corrections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.clients.drift import ChangesLoss
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.peft.abilities import DrawsParts

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


def check_pairs(setup: Setup) -> None:
    """Refuse steps in which a row is not compared with others, or is compared with fewer than it seems."""
    config = setup.config
    if config.batch_size < 2:
        raise ConfigError(
            "FP1306 the loss compares a pair with the others of its batch; give --batch-size 2 or more, such as 16"
        )
    if setup.training.optimizer.rows_per_pass:
        raise ConfigError(
            "FP1307 rows_per_pass would compare only the examples of each pass; leave it out of the optimizer, "
            "or give a smaller --batch-size"
        )
    if setup.mechanism is not None and setup.mechanism.audit:
        raise PrivacyError(
            "FP7089 audits score single examples, but a pair is scored against all others; leave audit out of --privacy"
        )


def check_reference(setup: Setup) -> None:
    """Refuse a loss that needs the unchanged base or gradients per example where the run has none."""
    name, private = setup.facts.task.partition("(")[0], setup.is_private_per_example
    if private and not setup.task.per_example:
        raise PrivacyError(
            f"FP7090 {name} {setup.task.per_example_missing}, so dp_sgd can't compute an example's gradient; "
            "use user_dp or local_dp, which protect a client's whole update"
        )
    strategy = setup.strategy
    if setup.task.reference and strategy.fills_base:
        raise ConfigError(
            f"FP1308 {name} compares with the unchanged base, and {setup.config.strategy} changes the base; use "
            "flexlora"
        )


def check_changed_loss(setup: Setup) -> None:
    """Refuse corrections with a loss of their own where what they move is not there, or is not protected.

    Raises:
        ConfigError, PrivacyError: says what, and what to do.
    """
    task = setup.facts.task.partition("(")[0]
    for correction in (c for c in setup.drift.corrections if isinstance(c, ChangesLoss)):
        if setup.facts.kind != "text" or setup.task.targets != "classes":
            raise ConfigError(
                f"FP1309 {correction.name} moves the tokens of texts with classes, and this run is {task} on "
                f"{setup.facts.kind}s; leave it out of --drift"
            )
        if setup.strategy.counts_owned and isinstance(setup.method, DrawsParts):
            raise ConfigError(
                "FP1310 owned_mean counts the experts that adamix draws in two passes per step, and "
                f"{correction.name} adds passes; use --strategy fedit, or leave it out of --drift"
            )
        if setup.mechanism is not None and setup.mechanism.per_example:
            raise PrivacyError(
                f"FP7091 {correction.name} has its own loss, for which {setup.mechanism.name} computes no "
                "gradients per example; leave it out of --drift, or use user_dp"
            )
