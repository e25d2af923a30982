"""What does not go with privacy: what passes a mechanism by, undoes its clipping, or needs more than sums."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fedpeft.aggregation.abilities import Buffered, PersonalModel
from fedpeft.aggregation.shared_sums import is_shared_sum, is_sum_of_clients, list_shared_sums
from fedpeft.clients.drift import ExchangedCorrection
from fedpeft.clients.local_optimizer import ProbesLosses
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.parts import format_part, name_of
from fedpeft.parts.families import strategies
from fedpeft.privacy.abilities import AddsServerNoise, is_whitened
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.wiring.profiles import list_distinct

if TYPE_CHECKING:
    from fedpeft.privacy.secure_sum.sum import SecureSum
    from fedpeft.wiring.setup import Setup


def check_server_noise(setup: Setup) -> None:
    """Refuse a server optimizer that takes out noise where the server adds none."""
    if setup.server_optimizer.needs_noise and not isinstance(setup.mechanism, AddsServerNoise):
        raise ConfigError(
            f"FP1322 --server-optimizer {setup.config.server_optimizer} removes noise that the server adds, and "
            "the server adds none here; leave corrected out, or use --privacy user_dp"
        )


def check_secure_sum(secure: SecureSum, setup: Setup) -> None:
    """Refuse what needs more of a client's update than that it is in a sum.

    Raises:
        PrivacyError: says what, and what to take instead.
    """
    config, name, strategy = setup.config, secure.name, setup.strategy
    if setup.factor_view:
        raise PrivacyError(
            f"FP7099 {config.peft} is aggregated by weight changes, and {name} needs a plain sum; use the PEFT "
            "method lora"
        )
    if not (is_sum_of_clients(type(strategy)) and is_shared_sum(strategy, setup.layout)):
        *others, last = [n for n in list_shared_sums(setup.layout) if is_sum_of_clients(strategies.part(n))]
        take = f"use {', '.join(others)} or {last}" if others else f"use {last}"
        raise PrivacyError(
            f"FP7100 {name} shows the server only the sum of the updates, and {name_of(type(strategy))} needs more "
            f"than that sum; {take}"
        )
    if config.codec != "fp32":
        raise PrivacyError(
            f"FP7101 {name} encodes updates as integers on a common grid; leave --codec out, and give {name} other bits"
        )
    if len({profile.form for profile in list_distinct(setup.profiles)}) > 1:
        raise PrivacyError(f"FP7102 {name} adds up vectors of one length; give all clients the same rank and alpha")
    for correction in setup.drift.corrections:
        if isinstance(correction, ExchangedCorrection):
            raise PrivacyError(
                f"FP7103 {correction.name} sends each client's state, which no sum hides; leave it out of --drift"
            )


def check_mechanism(mechanism: Mechanism, setup: Setup) -> None:
    """Refuse rules and methods whose rounds the mechanism can't account for, or ConfigError says why."""
    config = setup.config
    if isinstance(setup.strategy, Buffered):
        raise ConfigError(
            f"FP1323 {config.strategy} has no rounds with a cohort, which privacy accounting needs; use fedit"
        )
    if mechanism.per_example and isinstance(setup.training.optimizer, ProbesLosses):
        raise ConfigError(
            f"FP1518 {config.privacy} clips the gradient of each example, and {config.optimizer} computes none; "
            "use --optimizer adamw, or protect updates with user_dp or local_dp"
        )
    if isinstance(mechanism, SumMechanism) and mechanism.per_example:
        _check_sums_of_gradients(mechanism, setup)
    if setup.factor_view and not mechanism.noises_updates:
        raise ConfigError(
            f"FP1324 {config.peft} is aggregated by weight changes, and {mechanism.name} bounds a plain sum; "
            "use the PEFT method lora, or dp_sgd"
        )


def _check_sums_of_gradients(mechanism: Mechanism, setup: Setup) -> None:
    """Refuse what would act in local steps, or ConfigError says what, where clients send sums of gradients."""
    config, work = setup.config, setup.training.work
    default = next(f.default for f in dataclasses.fields(config) if f.name == "local_work")
    if config.local_work != default and work.steps_for(10**6, config.batch_size) != 1:
        raise ConfigError(
            f"FP1325 {mechanism.name}(unit=rows) takes one step a round, with a sum over all clients; leave "
            "--local-work out, and give more --rounds or a larger --batch-size"
        )
    if is_whitened(mechanism) and not setup.whitened_directions:
        raise ConfigError(
            "FP1326 whiten=True needs a head that is trained alone from a start that measures how features "
            f"vary, and this run has --peft {config.peft} and --head {config.head}; use --peft linear_probe "
            "--head private_ridge, if each example has one class"
        )
    if setup.method.regularised:
        raise ConfigError(
            f"FP1327 {setup.method.name} adds a penalty in local steps, and {mechanism.name}(unit=rows) has no "
            "local steps; use --peft lora or bottleneck"
        )
    if setup.drift.corrections:
        raise ConfigError(
            f"FP1328 {setup.drift.corrections[0].name} acts in local steps, and {mechanism.name}(unit=rows) has no "
            "local steps; leave it out of --drift"
        )


def check_private_run(mechanism: Mechanism, setup: Setup) -> None:
    """Refuse what would leave the clients beside the mechanism, or undo its clipping.

    Any codec may follow noise, and any may precede the server's clipping, error feedback included. But precision that
    the server sets by what it knows of the cohort lets one client change what the others contribute.

    Raises:
        PrivacyError: says what, and what to do.
    """
    config, head, uplink = setup.config, setup.head, setup.uplink
    if setup.strategy.weighting == "rows":
        raise PrivacyError(
            "FP7104 weighting=rows would reveal how many examples each client has, and let one client count "
            "for many; leave it out (it is uniform under --privacy)"
        )
    if head.exchanges and not head.bounded:
        raise PrivacyError(
            f"FP7105 head={config.head} sends sums over the clients' examples that {mechanism.name} does not "
            "protect; use --head zero, private_centroids or private_ridge"
        )
    for correction in setup.drift.corrections:
        if isinstance(correction, ExchangedCorrection):
            raise PrivacyError(
                f"FP7106 {correction.name} sends states that are computed from unprotected examples; leave it out of "
                "--drift"
            )
    if uplink.rules and not mechanism.noises_updates:
        raise PrivacyError(
            f"FP7107 the precision rule in --codec {str(uplink)!r} would let one client change what others contribute, "
            f"which {mechanism.name} can't bound; name the codec alone"
        )
    for rule in uplink.rules:
        if rule.reads_losses and mechanism.silent:
            raise PrivacyError(
                f"FP7108 {format_part(rule)} needs the clients' losses, which clients keep secret under "
                f"{mechanism.name}; leave it out, or allow raw_metrics=True"
            )
    if isinstance(setup.strategy, PersonalModel) and mechanism.per_example:
        raise PrivacyError(
            f"FP7109 {name_of(type(setup.strategy))} trains a second model on the same examples, which "
            f"{mechanism.name} does not account for; use user_dp, or another strategy"
        )
    if setup.personal and mechanism.silent:
        raise PrivacyError(
            f"FP7110 {config.strategy} is evaluated by clients on their own examples, and these metrics are not "
            f"protected; choose another strategy, or allow it with {mechanism.name}(raw_metrics=True, ...)"
        )
