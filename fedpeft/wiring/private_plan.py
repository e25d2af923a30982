"""How a private run trains where its user names a budget, and says nothing of training.

    --privacy "dp_sgd(epsilon=8)"

Whether there is training at all, and of an adapter or of the head alone, the mechanism decides by its signal to noise
(`Mechanism.has_signal`); that there is some the user may say, by the start's share or another head. Then the batch, the
local steps, the learning rates, the optimizer and the clipping norm follow from rows, clients, rounds and the cohort,
and from how far a server optimizer leads that the user names. Nothing is tuned on what the rows say, so nothing of it
costs privacy. Who sets one of `LEFT` sets all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from fedpeft.config import RunConfig
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
from fedpeft.wiring.profiles import ProfileTable
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup

LEFT = ("batch_size", "local_work", "learning_rate", "optimizer")
"""What is planned where all of it is left at its default."""

HEAD_ALONE, OF_IMAGES = "linear_probe", "whitened_probe"
"""The PEFT methods that are planned where an adapter would not be heard: a head is, or nothing is but its start."""

MADE_FOR, ALIKE = 3.0, 3.0
"""About how long the features were that plans were looked at on, and by what factor others may be longer or shorter."""

CLOSE = 1e-9
"""How far two noise multipliers of one start may lie apart, relatively."""

DIRECTIONS = "private_centroids"
"""Where whitened features are only released, and not trained on: moments, which would whiten them, have less to add
than they take."""


def can_plan(setup: Setup) -> bool:
    """Whether how clients train is to be planned: a budget is named, and nothing of training."""
    mechanism = setup.mechanism
    if mechanism is None or not mechanism.protects or mechanism.epsilon is None or not mechanism.plan:
        return False
    return mechanism.noise_multiplier is None and all(_is_default(setup.config, name) for name in LEFT)


def restore_start_share(setup: Setup, federation: Exposure, folder: Path) -> Setup:
    """The setup with the share of its start that the run in `folder` has begun with; the same one where it is new.

    What is heard another version may see otherwise, and a run goes on as it began: its ledger tells the noise of its
    start, and which of the two shares that is of.

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
    """The setup, with a note where the user names training that is not done, since its start has the whole budget."""
    mechanism, config = setup.mechanism, setup.config
    if mechanism is None or mechanism.start is not None:
        return setup
    mechanism.check_start(federation)  # an epsilon that is too small for it has no signal to be looked at
    if mechanism.trains(federation):
        return setup
    named = [name for name in ("rounds", *LEFT) if not _is_default(config, name)]
    if not named:
        return setup
    flags = " and ".join(f"--{name.replace('_', '-')}" for name in named)
    note = (
        f"{flags} {'is' if len(named) == 1 else 'are'} of no use: training would not be heard above the noise, so the "
        f"start of the head has the whole budget; {mechanism.name}(start={HALF:g}, ...) trains all the same"
    )
    return dataclasses.replace(setup, notes=(*setup.notes, note))


def plan_training(setup: Setup, federation: Exposure, groups: Sequence[ProfileTable] = (), head: str = "auto") -> Setup:
    """The setup with what its mechanism plans: training, or a start alone; the same one where the user says how.

    The planned settings say plan=False, so that a run that is continued stays what it was. Where the mechanism
    asks all clients in each round, so do they, unless the user has named a cohort.

    Args:
        setup: as the user says.
        federation: the run as its mechanism sees it.
        groups: of clients that differ.
        head: how the user says it starts.

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
    if not useful and all(_is_default(config, name) for name in ("peft", "strategy", "ranks")):
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
    named = None if _is_default(config, "server_optimizer") else trained.optimizer
    pace = named.pace if named is not None else None
    if not mechanism.trains(federation):
        if config.peft != OF_IMAGES or head != "auto" or config.head == DIRECTIONS:
            return trained
        return Setup.create(parse_run(dataclasses.replace(config, head=DIRECTIONS)), setup.facts, groups)
    if not isinstance(mechanism, PlansTraining):
        return setup
    training = mechanism.plan_training(federation, pace)
    not_whitened = "" if federation.whitened else _explain_no_whitening(trained, mechanism)
    _check_planned(trained, named is None or pace is not None, not_whitened)
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
    """Both with all clients in each round, where the mechanism asks them and the user has named no cohort."""
    asks_all = isinstance(mechanism, PlansTraining) and mechanism.asks_all(federation)
    if not asks_all or not _is_default(setup.config, "cohort"):
        return setup, federation
    config = dataclasses.replace(setup.config, cohort="all")
    return Setup.create(parse_run(config), setup.facts, groups), federation.asking_all()


def _create_noise_error(setup: Setup, heard: int) -> ConfigError:
    """What is said where noise drowns an adapter, and there is no head to train instead of it."""
    config = setup.config
    return ConfigError(
        f"FP1375 --privacy {config.privacy} lets at most {heard:,} trained numbers be heard above its noise, "
        f"{config.peft} has {setup.trained_entries[1]:,}, and {setup.facts.task} has no head that could be trained "
        "alone; take a larger epsilon, more rows or a smaller adapter (--peft 'lora(rank=1, layers=1)'), or name "
        "--learning-rate, --optimizer, --local-work and --batch-size yourself"
    )


def _check_planned(setup: Setup, plain: bool, not_whitened: str) -> None:
    """Refuse what no plan is made for.

    Args:
        setup: what is trained.
        plain: whether the server's steps are as long as the mean update is.
        not_whitened: why features are not, where they are not.

    Raises:
        ConfigError: says what, and what to do.
    """
    config = setup.config
    if not plain:
        raise ConfigError(
            f"FP1376 --server-optimizer {config.server_optimizer} takes steps of a length of its own, so that how "
            f"clients train can't be planned from --privacy {config.privacy}; name --learning-rate, --optimizer, "
            "--local-work and --batch-size yourself, or take momentum or leave it out"
        )
    if setup.method.reads == ALL_BLOCKS and not_whitened:  # plain steps swing across what all rows have in common
        raise ConfigError(
            f"FP1377 how {setup.method.name} trains can't be planned from --privacy {config.privacy}: {not_whitened}, "
            "or take --peft linear_probe, or name --learning-rate, --optimizer, --local-work and --batch-size yourself"
        )


def _read(federation: Exposure, setup: Setup, mechanism: Mechanism) -> Exposure:
    """With features whitened, where that is planned: of a head alone, from a start that tells how they vary; and else
    with their length, where a head alone reads some that are longer or shorter by far than what plans were made for."""
    if can_plan_whitening(mechanism) and setup.whitened_directions:
        return dataclasses.replace(federation, whitened=setup.whitened_directions)
    if not federation.head_alone or not isinstance(model := setup.model(), Classifier):
        return federation
    length = measure_feature_length(model) / MADE_FOR
    return federation if 1 / ALIKE < length < ALIKE else dataclasses.replace(federation, length=length)


def _explain_no_whitening(setup: Setup, mechanism: Mechanism) -> str:
    """Why not, and what to do."""
    if not can_plan_whitening(mechanism):
        return "its features would have to be whitened; take --privacy distributed_dp(unit=rows)"
    if not trains_head_alone(setup.strategy, setup.layout):
        return "plans are for a head that is trained alone; take --peft head2toe without an adapter"
    return (
        f"its features would have to be whitened, and --head {setup.config.head} does not tell how; take --head "
        "private_ridge where rows have one class each"
    )


def _choose_head_method(setup: Setup) -> str:
    """The PEFT method of a head alone: of pictures' labels on whitened features."""
    return OF_IMAGES if setup.facts.kind == "image" and setup.task.targets else HEAD_ALONE


def _is_default(config: RunConfig, name: str) -> bool:
    """Whether a setting has its default, or the PEFT method is what that stands for."""
    default = ADAPTER if name == "peft" else RunConfig.__dataclass_fields__[name].default
    return bool(getattr(config, name) == default)
