"""All checks of a run, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.models.abilities import ComparesExamples, DescribesImages
from fedpeft.wiring.checks.bases import check_bases
from fedpeft.wiring.checks.captions import check_captions
from fedpeft.wiring.checks.groups import check_groups
from fedpeft.wiring.checks.losses import check_changed_loss, check_pairs, check_reference
from fedpeft.wiring.checks.measurements import check_measured
from fedpeft.wiring.checks.private import check_mechanism, check_private_run, check_secure_sum, check_server_noise
from fedpeft.wiring.checks.ranks import check_ranks
from fedpeft.wiring.checks.rules import check_label_shift, check_memory, check_method, check_needs, check_server
from fedpeft.wiring.checks.targets import check_targets
from fedpeft.wiring.checks.tasks import check_tasks
from fedpeft.wiring.profiles import list_distinct

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


def check(setup: Setup) -> None:
    """Refuse parts that don't go together.

    Raises:
        ConfigError, PrivacyError: says which, and why.
    """
    config, strategy, forms = setup.config, setup.strategy, [profile.form for profile in list_distinct(setup.profiles)]
    check_groups(setup)
    check_memory(strategy, setup.uplink)
    check_ranks(setup)
    check_method(setup.method, strategy, forms)
    if not setup.factor_view:
        strategy.check(setup.layout, forms)
    check_server(strategy, setup.server_optimizer)
    for correction in setup.drift.corrections:
        correction.check(strategy, setup.training, forms)
        check_needs(correction, strategy, setup.layout)
    check_bases(setup.profiles, config.dtype, setup.method)
    _ = setup.training_control  # says what validation rows can't decide
    _check_recomputing(setup)
    check_reference(setup)
    if setup.facts.classes and not setup.task.targets and setup.head.exchanges:
        raise ConfigError(
            f"FP1352 head={config.head} starts from one label per example, which the task {setup.facts.task} "
            "lacks; use --head zero"
        )
    if isinstance(setup.task, ComparesExamples):
        check_pairs(setup)
    check_targets(setup)
    if isinstance(setup.task, DescribesImages):
        check_captions(setup)
    if setup.drift.needs_shares:
        check_label_shift(setup.task, config.head, setup.head, setup.mechanism)
        if setup.drift.least_skew and setup.secure_sum is not None:
            raise PrivacyError(
                f"FP7115 {setup.secure_sum.name} hides how different the clients' classes are; leave least out of "
                "label_shift, which then always acts, or leave it out of --drift"
            )
    check_server_noise(setup)
    check_measured(setup)
    check_changed_loss(setup)
    check_tasks(setup)
    if setup.secure_sum is not None:
        check_secure_sum(setup.secure_sum, setup)
    if setup.mechanism is not None:
        check_mechanism(setup.mechanism, setup)
        check_private_run(setup.mechanism, setup)


def _check_recomputing(setup: Setup) -> None:
    """Gradients per example are told from one pass."""
    optimizer = setup.training.optimizer
    if setup.is_private_per_example and (optimizer.checkpointing or optimizer.rows_per_pass):
        raise ConfigError(
            "FP1353 dp_sgd computes gradients per example in one pass; leave checkpointing and rows_per_pass out of "
            "--optimizer"
        )
