"""Plan of local training for a private run whose user names a budget and no setting of training.

    --privacy "dp_sgd(epsilon=8)"

The mechanism decides by its signal to noise (`Mechanism.has_signal`) whether to train, and whether to train an adapter
or the head alone. The user can demand training by the start's share or by another head. Batch size, local steps,
learning rates, optimizer and clipping norm follow from rows, clients, rounds and cohort, and from the reach of a named
server optimizer. Nothing is tuned on the content of rows, so the plan costs no privacy. A user who sets one of `LEFT`
sets all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from fedpeft.aggregation.server_optimizer import Pace
from fedpeft.errors import ConfigError
from fedpeft.models.feature_length import measure_feature_length
from fedpeft.models.readout import ALL_BLOCKS
from fedpeft.models.tasks.classification import Classifier
from fedpeft.parts import format_part
from fedpeft.privacy.abilities import can_plan_whitening
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.exposure import Exposure, trains_head_alone
from fedpeft.privacy.ledger import terms_in
from fedpeft.privacy.mechanism import HALF, Mechanism
from fedpeft.privacy.training_plans import PlansTraining
from fedpeft.wiring.auto_defaults import ADAPTER
from fedpeft.wiring.checks.together import check
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.profiles import ProfileTable
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup

LEFT = ("batch_size", "local_work", "learning_rate", "optimizer")
"""The settings that are planned if all of them have their defaults."""

HEAD_ALONE, OF_IMAGES = "linear_probe", "whitened_probe"
"""The PEFT methods that are planned if noise would drown an adapter."""

MADE_FOR, ALIKE = 3.0, 3.0
"""Mean length of the features that plans were tried on, and the factor by which others may differ."""

CLOSE = 1e-9
"""Largest relative difference of two noise multipliers of one start."""

DIRECTIONS = "private_centroids"
"""The head if whitened features are released but not trained on: moments, which whiten, cost more than they add."""


def can_plan(setup: Setup) -> bool:
    """Return whether to plan local training: the user names a budget and no setting of training."""
    mechanism = setup.mechanism
    if mechanism is None or not mechanism.protects or mechanism.epsilon is None or not mechanism.plan:
        return False
    return mechanism.noise_multiplier is None and _are_default(setup.config, *LEFT)


def restore_start_share(setup: Setup, federation: Exposure, folder: Path) -> Setup:
    """Return the setup with the share of its start that the run in `folder` began with; a new run is unchanged.

    Another version may judge the signal differently, but a run continues as it began. The noise of the start in its
    ledger determines the share.

    Raises:
        PrivacyError: the ledger can't be read.
    """
    mechanism, begun = setup.mechanism, terms_in(folder / LEDGER)
    if mechanism is None or begun is None or mechanism.start is not None or mechanism.epsilon is None:
        return setup
    if mechanism.noise_multiplier is not None or not federation.start:
        return setup
    mechanism.check(federation)
    was, today = begun.get("start_noise_multiplier"), mechanism.start_share(federation)
    for share in (today, HALF, 1.0):
        told = dataclasses.replace(mechanism, start=share)
        noise = told.start_noise(federation)
        if noise is not None and isinstance(was, float) and math.isclose(noise, was, rel_tol=CLOSE):
            return dataclasses.replace(setup, mechanism=told)
    return setup


def note_unused_training(setup: Setup, federation: Exposure) -> Setup:
    """Return the setup, with a note if the user names training although the start takes the whole budget."""
    mechanism, config = setup.mechanism, setup.config
    if mechanism is None or mechanism.start is not None:
        return setup
    mechanism.check_start(federation)  # an epsilon that is too small for it has no signal to be looked at
    if mechanism.trains(federation):
        return setup
    named = [name for name in ("rounds", *LEFT) if not _are_default(config, name)]
    if not named:
        return setup
    flags = " and ".join(f"--{name.replace('_', '-')}" for name in named)
    note = (
        f"{flags} {'is' if len(named) == 1 else 'are'} of no use: training would not rise above the noise, so the "
        f"start of the head has the whole budget; {mechanism.name}(start={HALF:g}, ...) trains nevertheless"
    )
    return dataclasses.replace(setup, notes=(*setup.notes, note))


def plan_training(setup: Setup, federation: Exposure, groups: Sequence[ProfileTable] = (), head: str = "auto") -> Setup:
    """Return the setup with the plan of its mechanism: training, or a start alone; unchanged if the user decides.

    The planned settings contain plan=False, so that a continued run stays the same. If the mechanism asks all clients
    in each round, the plan does so too, unless the user has named a cohort.

    Args:
        setup: the parts that the user describes.
        federation: the run's exposure.
        groups: groups of clients that differ.
        head: the user's text of --head.

    Raises:
        FedpeftError: what is planned does not go with the other settings; or the named server optimizer's steps are
            not as long as the mean update is, so that there is nothing to plan by.
    """
    mechanism = setup.mechanism
    if mechanism is None or not can_plan(setup):
        return setup
    setup, federation = _ask_all_clients(mechanism, setup, federation, groups)
    config, trained = setup.config, setup
    useful = mechanism.trains(federation) and mechanism.has_signal(federation)
    if not useful and _are_default(config, "peft", "strategy", "ranks"):
        if "head.weight" not in setup.layout.shapes and isinstance(mechanism, PlansTraining):
            raise _create_noise_error(setup, mechanism.count_trainable_entries(federation))
        config = dataclasses.replace(config, peft=_choose_head_method(setup))
        trained = Setup.create(parse_run(config), setup.facts, groups)
        federation = dataclasses.replace(
            federation, method=trained.method, layout=trained.layout, trained=trained.trained_entries
        )
        trained, federation = _ask_all_clients(mechanism, trained, federation, groups)
        config = trained.config
    federation = _read(federation, trained, mechanism)
    pace = None if _are_default(config, "server_optimizer") else trained.server_optimizer.pace
    if not mechanism.trains(federation):
        if config.peft != OF_IMAGES or head != "auto" or config.head == DIRECTIONS:
            return trained
        return Setup.create(parse_run(dataclasses.replace(config, head=DIRECTIONS)), setup.facts, groups)
    if not isinstance(mechanism, PlansTraining):
        return setup
    training = mechanism.plan_training(federation, pace)
    _check_planned(trained, mechanism, pace, bool(federation.whitened))
    momentum = {"server_optimizer": f"momentum(beta={training.momentum})"} if training.momentum else {}
    made = trained.change(
        batch_size=training.batch_size,
        local_work=f"steps(count={training.steps}, walk=False)",
        learning_rate=training.learning_rate,
        optimizer=training.optimizer,
        privacy=format_part(dataclasses.replace(training.mechanism, plan=False)),
        **momentum,
    )
    check(made)
    return made


def _ask_all_clients(
    mechanism: Mechanism, setup: Setup, federation: Exposure, groups: Sequence[ProfileTable]
) -> tuple[Setup, Exposure]:
    """Return both with all clients in each round, if the mechanism asks all and the user has named no cohort."""
    asks_all = isinstance(mechanism, PlansTraining) and mechanism.asks_all(federation)
    if not asks_all or not _are_default(setup.config, "cohort"):
        return setup, federation
    config = dataclasses.replace(setup.config, cohort="all")
    return Setup.create(parse_run(config), setup.facts, groups), federation.asking_all()


def _create_noise_error(setup: Setup, heard: int) -> ConfigError:
    """Return the error for a run whose noise drowns the adapter and that has no head to train instead."""
    config = setup.config
    return ConfigError(
        f"FP1375 under --privacy {config.privacy} the noise drowns adapters of more than {heard:,} trained "
        f"numbers; {config.peft} has {setup.trained_entries[1]:,}, and {setup.facts.task} has no head to train "
        "alone. Take a larger epsilon, more examples or a smaller adapter (--peft 'lora(rank=1, layers=1)'), "
        "or name --learning-rate, --optimizer, --local-work and --batch-size yourself"
    )


def _check_planned(setup: Setup, mechanism: Mechanism, pace: Pace | None, is_whitened: bool) -> None:
    """Refuse what no plan is made for.

    Args:
        setup: what is trained.
        mechanism: plans the training.
        pace: the steps of the named server optimizer; None: no optimizer is named, or its steps are unrelated to the
            mean update.
        is_whitened: whether features are whitened.

    Raises:
        ConfigError: says what, and what to do.
    """
    config = setup.config
    if pace is None and not _are_default(config, "server_optimizer"):
        raise ConfigError(
            f"FP1376 --server-optimizer {config.server_optimizer} sets the length of its steps itself, so local "
            f"training can't be planned from --privacy {config.privacy}; name --learning-rate, --optimizer, "
            "--local-work and --batch-size yourself, or use momentum or leave it out"
        )
    if setup.method.reads == ALL_BLOCKS and not is_whitened:  # plain steps swing across what all rows have in common
        not_whitened = _explain_no_whitening(setup, mechanism)
        raise ConfigError(
            f"FP1377 local training of {setup.method.name} can't be planned from --privacy {config.privacy}: "
            f"{not_whitened}, or use --peft linear_probe, or name --learning-rate, --optimizer, --local-work "
            "and --batch-size yourself"
        )


def _read(federation: Exposure, setup: Setup, mechanism: Mechanism) -> Exposure:
    """Return the exposure with the features that a head alone reads.

    It holds the whitened directions if whitening is planned and the start has them. Else it holds the features' length
    if that differs much from the length that plans were made for.
    """
    if can_plan_whitening(mechanism) and setup.whitened_directions:
        return dataclasses.replace(federation, whitened=setup.whitened_directions)
    if not federation.head_alone or not isinstance(model := setup.model(), Classifier):
        return federation
    length = measure_feature_length(model) / MADE_FOR
    return federation if 1 / ALIKE < length < ALIKE else dataclasses.replace(federation, length=length)


def _explain_no_whitening(setup: Setup, mechanism: Mechanism) -> str:
    """Return why features are not whitened, and what to do."""
    if not can_plan_whitening(mechanism):
        return "its features would have to be whitened; use --privacy distributed_dp(unit=rows)"
    if not trains_head_alone(setup.strategy, setup.layout):
        return "plans are for a head that is trained alone; use --peft head2toe without an adapter"
    return (
        f"its features would have to be whitened, and --head {setup.config.head} does not measure how; use --head "
        "private_ridge if each example has one class"
    )


def _choose_head_method(setup: Setup) -> str:
    """Return the PEFT method of a head alone; it reads whitened features of pictures with labels."""
    return OF_IMAGES if setup.facts.kind == "image" and setup.task.targets else HEAD_ALONE


def _are_default(config: RunConfig, *names: str) -> bool:
    """Return whether settings have their defaults, or the PEFT method that the default stands for."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)} | {"peft": ADAPTER}
    return all(getattr(config, name) == defaults[name] for name in names)
